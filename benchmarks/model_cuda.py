"""Whole models of 7B shape with random weights: what methods cost in prefill and for every new token.

A wrap is entered once and used many times, so neither the look at the model on entering nor the report is timed. VHR
runs a text only once (`runtime.text_pass`); `var+vhr` forgets it before every run, as if each prompt had a text of its
own, and `var+vhr, known text` does not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.common import llava_inputs, random_llava
from benchmarks.gpu import Clock, Machine, show

FULL = {
    "shape": {
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "mlp": 11008,
        "patches_per_side": 53,
        "dtype": "bfloat16",
    },
    "text": 91,  # with 53 * 53 patches 2,900 tokens
    "new_tokens": 128,
    "repeats": 5,
}
TINY = {
    "shape": {"hidden": 64, "layers": 2, "heads": 2, "mlp": 64, "patches_per_side": 4, "vision_hidden": 16},
    "text": 40,
    "new_tokens": 2,
    "repeats": 1,
}


def interventions(variant: str, hidden: int) -> list[Any]:
    """Floors of 0 and a low threshold for sinks, so that VAR changes every head and row it may.

    Of the few patches of the tiny model some have to be above it, too.
    """
    import lvlm_attn as la

    tau = 2.5 if hidden > 64 else 1.0
    var = la.VAR(rho=0.0, mass_floor=0.0, tau=tau, sink_dims=(3, hidden // 2))
    return {
        "idle": [],
        "var": [var],
        "vhr": [la.VHR()],
        "var+vhr": [var, la.VHR()],
        "var+vhr, known text": [var, la.VHR()],
        "vcd": [la.VCD()],
        "agla's view": [_agla()],
        "pai": [la.PAI()],
        "visual_self": [la.VisualSelf()],
        "mma": [la.MMA()],
    }[variant]


def _agla() -> Any:
    """AGLA without its matcher, which is another model: the second view and the joined logits."""
    import lvlm_attn as la

    class View(la.AGLA):  # type: ignore[misc]
        def views(self, request: Any) -> Sequence[Any]:
            return [request.with_pixels(lambda pixels, index: pixels * 0.5)]

    return View(control=True)


def model(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """VAR and VHR."""
    return _measured(machine, clock, ("var", "vhr", "var+vhr", "var+vhr, known text"))


def views(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """Second views, scores that change, and restricted visibility."""
    return _measured(machine, clock, ("vcd", "agla's view", "pai", "visual_self", "mma"))


def more(machine: Machine, clock: Clock) -> list[dict[str, Any]]:
    """VAR and VHR with grouped heads, and in a batch of 8 with 32 new tokens."""
    kv_heads = 8 if machine.is_gpu else 1
    found = _measured(machine, clock, ("var+vhr",), kv_heads=kv_heads)
    batch = 8 if machine.is_gpu else 2
    return found + _measured(machine, clock, ("var+vhr",), batch=batch, kv_heads=kv_heads, most_tokens=32)


MODEL_PARTS: Mapping[str, Callable[[Machine, Clock], list[dict[str, Any]]]] = {
    "model": model,
    "model_views": views,
    "model_more": more,
}
"""Parts of `benchmarks.kernels_cuda`."""


def _measured(
    machine: Machine,
    clock: Clock,
    variants: Sequence[str],
    *,
    batch: int = 1,
    kv_heads: int | None = None,
    most_tokens: int = 128,
) -> list[dict[str, Any]]:
    """Times one new token, and all of them; the difference is what the other tokens cost.

    Each variant stands between two plain runs of its own kind. A wrap without interventions must not change what is
    generated, which is looked at first.
    """
    import torch

    plan: dict[str, Any] = FULL if machine.is_gpu else TINY
    made = random_llava(**plan["shape"], kv_heads=kv_heads, device=str(machine.device))
    inputs = llava_inputs(made, batch=batch, text=plan["text"])
    tokens, length = min(plan["new_tokens"], most_tokens), inputs["input_ids"].shape[1]
    hidden = plan["shape"]["hidden"]
    with _Wrapped(machine, made, "idle", hidden) as idle:
        wrapped = idle.run(inputs, 4)
    if not torch.equal(made.generate(**inputs, **_options(4)), wrapped):
        raise SystemExit("A wrap without interventions changed what the model generates.")
    rows: list[dict[str, Any]] = []
    for name in variants:
        if clock.is_over():
            rows.append({"variant": name, "failed": "left out: the part's time was over"})
            continue
        taken: dict[tuple[str, int], list[float]] = {
            (one, n): [] for one in ("plain", name) for n in (1, tokens)
        }
        row: dict[str, Any] = {"variant": name}
        for turn in range(-1 if machine.is_gpu else 0, plan["repeats"]):
            for n in (1, tokens):
                taken_now = [_milliseconds(machine, partial(made.generate, **inputs, **_options(n)))]
                with _Wrapped(machine, made, name, hidden) as ours:
                    ours.prepare(inputs)
                    taken_now.append(_milliseconds(machine, partial(ours.run, inputs, n)))
                    row["kernels"] = ours.kernels()
                if turn >= 0:  # the first round warms up
                    for one, value in zip(("plain", name), taken_now):
                        taken[one, n].append(value)
        plain, mine = (_times(taken[one, 1], taken[one, tokens], tokens) for one in ("plain", name))
        row |= mine
        row |= {f"plain_{key}": value for key, value in plain.items()}
        row["ratio"] = mine["ms"] / plain["ms"]
        row["prefill_ratio"] = mine["prefill_ms"] / plain["prefill_ms"]
        row["per_token_ratio"] = mine["ms_per_token"] / plain["ms_per_token"]
        row |= {"batch": batch, "kv_heads": kv_heads, "prompt": length, "new_tokens": tokens}
        with _Wrapped(machine, made, name, hidden) as ours:
            row["peak_mib"] = machine.peak(partial(ours.run, inputs, 2))
        rows.append(row)
        show(
            f"{name}: plain {plain['ms']:.0f} ms; prefill {row['prefill_ratio']:.3f}, per token "
            f"{row['per_token_ratio']:.3f} ({length} tokens of prompt, {tokens} new ones, batch {batch})",
            [row],
        )
    return rows


class _Wrapped:
    """A wrap that is entered outside of what is timed."""

    def __init__(self, machine: Machine, model: Any, variant: str, hidden: int) -> None:
        import lvlm_attn as la

        self._variant, self._stack = variant, ExitStack()
        # In the interpreter, which is slow, one variant shows that the kernels are reached.
        kernels = machine.kernels if machine.is_gpu or variant == "var+vhr" else "torch"
        self._wrap = la.wrap(model, *interventions(variant, hidden), kernels=kernels)

    def __enter__(self) -> _Wrapped:
        self._lvlm = self._stack.enter_context(self._wrap)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def prepare(self, inputs: Mapping[str, Any]) -> None:
        """Has a text known, or forgotten."""
        from lvlm_attn.runtime.text_pass import TEXTS

        if "known" in self._variant:
            self.run(inputs, 1)
        else:
            TEXTS.forget()

    def run(self, inputs: Mapping[str, Any], tokens: int) -> Any:
        """Generates."""
        return self._lvlm.generate(**inputs, **_options(tokens))

    def kernels(self) -> str:
        """Which path ran."""
        return str(self._lvlm.report().kernels)


def _options(tokens: int) -> dict[str, Any]:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def _milliseconds(machine: Machine, run: Callable[[], Any]) -> float:
    machine.wait()
    begin = time.perf_counter()
    run()
    machine.wait()
    return 1e3 * (time.perf_counter() - begin)


def _times(one: list[float], all_of_them: list[float], tokens: int) -> dict[str, Any]:
    """Of one new token and of all, in ms."""
    first, total = statistics.median(one), statistics.median(all_of_them)
    return {"ms": total, "prefill_ms": first, "ms_per_token": (total - first) / (tokens - 1)}
