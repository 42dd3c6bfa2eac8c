"""The GPU part of `benchmarks.kernels`: attention calls as the registry makes them, beside torch and others.

Every case is checked first: the touched rows of the last sample against the definition in float64, where rounding alone
may be exceeded by half, and against plain attention, from which they have to differ. Then everything is timed with a
cold cache. Ratios are to the fastest of torch's fused attentions, each pinned; `sdpa` is the one that torch takes by
itself. `ours, torch` is the path without Triton. Results are written after every part, here and to the folder that the
environment variable OUT names.

A part ends within 8 minutes on an H100:

    python -m benchmarks.kernels --device cuda --parts prefill
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import rivals
from benchmarks.attention_case import Asked, Case, Shape
from benchmarks.common import save
from benchmarks.gpu import Clock, Machine, check, compare, error_of, show
from benchmarks.model_cuda import MODEL_PARTS

CHECKED = 60
"""Rows of a case that are compared with float64, at most."""
LEAST_CHANGE = 0.01
"""How far touched rows have to be from plain attention, as a ratio of norms, or nothing was measured."""


@dataclass(frozen=True)
class Sizes:
    """How large the cases are.

    Attributes:
        base: of all cases; the lengths and what else differs is said by each part.
        lengths: prompts and caches, short ones first.
        repeats: rounds.
        inputs: how many sets of random inputs take turns.
    """

    base: Shape
    lengths: tuple[int, ...]
    repeats: int
    inputs: int

    @staticmethod
    def of(machine: Machine) -> Sizes:
        """Of a 7B model on a GPU; tiny elsewhere."""
        if machine.is_gpu:
            base = Shape(1, 1, dtype=torch.bfloat16)
            return Sizes(base, (2_900, 8_192, 16_384, 32_768), repeats=20, inputs=3)
        base = Shape(1, 1, heads=2, kv_heads=2, dim=16, dtype=torch.float32)
        return Sizes(base, (130,), repeats=1, inputs=1)

    def prefill(self, length: int, **changes: Any) -> Shape:
        """A prompt."""
        return replace(self.base, queries=length, keys=length, **changes)

    def decode(self, length: int, **changes: Any) -> Shape:
        """One query over a cache."""
        return replace(self.base, queries=1, keys=length, **changes)

    def variations(self, machine: Machine, make: Callable[..., Shape]) -> list[Shape]:
        """The shortest length with grouped heads, in fp16, in a batch, and with padding."""
        short, batch = self.lengths[0], 8
        fewer = max(self.base.heads // 4, 1)
        if not machine.is_gpu:
            return [make(short, kv_heads=fewer), make(short, batch=2, padding=7)]
        return [
            make(short, kv_heads=fewer),
            make(short, dtype=machine.dtype("float16")),
            make(short, batch=batch),
            make(short, batch=batch, kv_heads=fewer),
            make(short, batch=batch // 2, padding=short // 4),
        ]


def run(device: str, parts: list[str], write: bool = True) -> dict[str, Any]:
    """Runs the parts and returns what is written."""
    machine = Machine.of(device)
    result: dict[str, Any] = {"device": str(machine.device), **machine.about()}
    for part in parts:
        clock = Clock()
        with torch.no_grad():
            result[part] = PARTS[part](machine, clock)
        if write:
            about = {"device": str(machine.device), **machine.about()}
            print(save(f"kernels_{machine.device.type}_{part}", {**about, part: result[part]}))
    return result


def prefill(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """VAR over prompts of four lengths."""
    sizes = Sizes.of(machine)
    return _cases(machine, clock, sizes, [sizes.prefill(length) for length in sizes.lengths], _var)


def prefill_more(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """VAR over prompts of other types, heads, batches and padding."""
    sizes = Sizes.of(machine)
    return _cases(machine, clock, sizes, sizes.variations(machine, sizes.prefill), _var)


def decode(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """VAR at one token of the answer, over all lengths and in other types, heads, batches and padding."""
    sizes = Sizes.of(machine)
    shapes = [sizes.decode(length) for length in sizes.lengths[:3]]
    return _cases(machine, clock, sizes, shapes + sizes.variations(machine, sizes.decode), _var)


def pai(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """PAI's scores, in prefill and at one token of the answer."""
    sizes = Sizes.of(machine)
    shapes = [sizes.decode(length) for length in sizes.lengths[:3]]
    shapes += [sizes.prefill(length) for length in sizes.lengths[:2]]
    return _cases(machine, clock, sizes, shapes, _pai)


def mma(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """Image tokens that attend to the question."""
    sizes = Sizes.of(machine)
    shapes = [sizes.prefill(length) for length in sizes.lengths[:3]]
    return _cases(machine, clock, sizes, shapes, _mma)


def visual_self(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """Image tokens that do not attend to each other."""
    sizes = Sizes.of(machine)
    shapes = [sizes.prefill(length) for length in sizes.lengths[:3]]
    return _cases(machine, clock, sizes, shapes, _visual_self)


@dataclass(frozen=True)
class Rivals:
    """A case with what is asked of it.

    Attributes:
        title: what it is.
        kind: the kind of the queries that change (see `Case.kinds`).
        others: what it is compared with beside torch's fused attention; those that are `exact` are checked, too.
        exact: see `others`.
    """

    title: str
    kind: int
    others: Mapping[str, Callable[[Case], rivals.Run]]
    exact: tuple[str, ...]


def _var(case: Case) -> Rivals:
    case.asked = Asked(moved=case.redistribution())
    others = {"eager, the authors' rule": rivals.eager_var, "flex attention, two passes": rivals.flex_var}
    return Rivals("VAR", 3, others, ("flex attention, two passes",))


def _pai(case: Case) -> Rivals:
    case.asked = Asked(amplified=case.amplification())
    return Rivals("PAI", -1, {}, ())


def _mma(case: Case) -> Rivals:
    case.asked = Asked(visible=case.reading_ahead())
    return Rivals("MMA", 2, _visible(ahead=True), ("flex attention", "sdpa with a boolean mask"))


def _visual_self(case: Case) -> Rivals:
    case.asked = Asked(visible=case.visual_self())
    return Rivals("VisualSelf", 2, _visible(ahead=False), ("flex attention", "sdpa with a boolean mask"))


def _visible(*, ahead: bool) -> dict[str, Callable[[Case], rivals.Run]]:
    return {
        "sdpa with a boolean mask": lambda case: rivals.with_mask(case, ahead=ahead),
        "flex attention": lambda case: rivals.flex_visible(case, ahead=ahead),
    }


def _cases(
    machine: Machine, clock: Clock, sizes: Sizes, shapes: list[Shape], ask: Callable[[Case], Rivals]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for shape in shapes:
        if clock.is_over():
            found.append({"shape": str(shape), "left_out": "the part's time was over"})
            print(f"{shape}: left out, the time is over", flush=True)
            continue
        case = Case(machine, shape, sizes.inputs)
        asked = ask(case)
        ours = {"ours": case.call(machine.kernels)}
        if machine.kernels != "torch":
            ours["ours, torch"] = case.call("torch")
        checked = _checked(case, asked, ours)
        plain = rivals.plain(case)
        variants = {**plain, **ours}
        for name, make in asked.others.items():
            if name not in checked["failed"]:
                variants[name] = make(case)
        rows = compare(machine, variants, list(plain), sizes.repeats, sizes.inputs)
        rows += [{"variant": name, "failed": why} for name, why in checked.pop("failed").items()]
        for row in rows:
            row |= {"what": asked.title, "shape": str(shape), "paths": case.paths, **checked}
            if "ms" in row:
                row["roofline_percent"] = machine.roofline(row["ms"], shape.flops, shape.moved)
        show(f"{asked.title}, {shape} (errors {checked['errors']})", rows)
        found += rows
        if machine.is_gpu:
            torch.cuda.empty_cache()
    return found


def _checked(case: Case, asked: Rivals, ours: Mapping[str, rivals.Run]) -> dict[str, Any]:
    """Compares touched rows of the last sample with the definition.

    Raises:
        SystemExit: if a result is wrong, or nothing changes.
    """
    rows = (
        case.is_touched(asked.kind)[-1].nonzero()[:, 0]
        if asked.kind >= 0
        else torch.tensor([case.shape.queries - 1])
    )
    rows = rows[:: max(len(rows) // CHECKED, 1)][-CHECKED:]
    want, unchanged = case.truth(rows), case.truth(rows, asked=False)
    change = error_of(unchanged, want)
    if change < LEAST_CHANGE:
        raise SystemExit(
            f"{asked.title}, {case.shape}: touched rows change by {change:.2e}; nothing is measured."
        )
    rounding = error_of(want.to(case.shape.dtype), want)
    heads = want.shape[1]
    plain = error_of(case.plain(0)[-1, rows, :heads], unchanged)
    bound = 1.5 * max(rounding, plain) if case.machine.is_gpu else 1e-5
    errors, failed = {}, {}
    for name, run in ours.items():
        errors[name] = error_of(run(0)[-1, rows, :heads], want)
        check(f"{asked.title}, {case.shape}, {name}", errors[name], bound)
    for name, make in asked.others.items():
        try:
            errors[name] = error_of(make(case)(0)[-1, rows, :heads], want)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            is_memory = isinstance(error, torch.OutOfMemoryError)
            failed[name] = "out of memory" if is_memory else str(error).splitlines()[0][:200]
            continue
        if name in asked.exact:
            check(f"{asked.title}, {case.shape}, {name}", errors[name], 4 * bound)
    shown = {name: float(f"{error:.3g}") for name, error in errors.items()}
    return {
        "errors": shown,
        "rounding": rounding,
        "error_of_plain": plain,
        "change": change,
        "failed": failed,
    }


PARTS: dict[str, Callable[[Machine, Clock], list[dict[str, Any]]]] = {
    "prefill": prefill,
    "prefill_more": prefill_more,
    "decode": decode,
    "pai": pai,
    "mma": mma,
    "visual_self": visual_self,
    **MODEL_PARTS,
}
"""What can be run, each within 8 minutes on an H100."""
