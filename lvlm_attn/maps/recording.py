"""What a recorder keeps while a prompt is decoded, and the `AttentionMaps` that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.layer_key import LayerKey
from lvlm_attn.maps.spool import Spool, Stored

PAUSED: ContextVar[bool] = ContextVar("lvlm_attn_maps_paused", default=False)
"""Whether recorders leave out what is decoded now, because it is only to be measured."""

SETTLE = 32
"""After how many steps weights leave the device they were computed on."""


@dataclass(eq=False)
class Step:
    """The rows of one forward call.

    Attributes:
        rows: `(batch, rows)`, positions of the queries; -1 where a row only fills up.
        targets: `(batch, rows)`, positions of the tokens they are about; -1 likewise.
        first: the position of the call's first query.
        order: `(batch, rows)`, which of the rows that were read each one is; None for one after another.
        weights: by layer `(batch, heads, rows, keys)`, or where on disk they are.
    """

    rows: Tensor
    targets: Tensor
    first: int
    order: Tensor | None = None
    weights: dict[LayerKey, Tensor | Stored] = field(default_factory=dict)

    @staticmethod
    def of(own: Tensor, following: Tensor, first: int, prompt_length: int) -> Step:
        """The rows of a call, as a readout of all of them packs them.

        Args:
            own: `(batch, queries)`, True at queries that are about themselves.
            following: `(batch, queries)`, True at queries that are about the next token; a query may be both.
            first: the position of the first query.
            prompt_length: where the answer begins.
        """
        read = Rows.of(own | following)
        assert read is not None
        numbers = torch.arange(read.index.shape[1]).expand_as(read.index)
        place = torch.zeros_like(own, dtype=torch.long).scatter(1, read.index, numbers)
        parts = []
        for is_kind in (own, following):
            packed = (
                Rows.of(is_kind) if bool(is_kind.any()) else None
            )  # a single query is packed untouched, too
            if packed is None:
                continue
            rows = packed.index + first
            after = rows if is_kind is own else torch.where(rows < prompt_length, prompt_length, rows + 1)
            keep = packed.is_touched
            order = place.gather(1, packed.index).masked_fill(~keep, 0)
            parts.append((rows.where(keep, -1), after.where(keep, -1), order))
        joined = [torch.cat(pair, 1) for pair in zip(*parts)]
        order = joined[2]
        is_plain = order.shape == numbers.shape and torch.equal(order, numbers)
        return Step(joined[0], joined[1], first, None if is_plain else order)

    def keep(self, is_kept: Tensor) -> None:
        """Leaves out some of the rows, in place.

        Args:
            is_kept: `(rows,)`.
        """
        kept = is_kept.nonzero().flatten()
        self.rows, self.targets = self.rows[:, kept], self.targets[:, kept]
        for layer, value in self.weights.items():
            assert isinstance(value, Tensor)
            for place, row in enumerate(kept.tolist()):
                if place != row:
                    value[:, :, place] = value[:, :, row]
            self.weights[layer] = value[:, :, : len(kept)]

    def ordered(self, weights: Tensor) -> Tensor:
        """The rows of `(batch, heads, read rows, keys)` as this step has them."""
        if self.order is None:
            return weights
        index = self.order.to(weights.device)[:, None, :, None]
        return weights.gather(2, index.expand(-1, weights.shape[1], -1, weights.shape[3]))


@dataclass(eq=False)
class Log:
    """What was recorded of one prompt so far.

    Attributes:
        steps: the calls that had rows, in order.
        ids: token ids `(batch, queries)` of every call, with where they begin.
        prompt: layout of the prompt so far; generated positions may be missing at its end.
        length: how many positions were processed.
        prompt_length: where the answer begins.
        spool: where weights go, or None for memory.
        sinks: by layer the sink scores `(batch, positions)` of the prompt.
    """

    steps: list[Step] = field(default_factory=list)
    ids: list[tuple[int, Tensor]] = field(default_factory=list)
    prompt: PromptLayout | None = None
    length: int = 0
    prompt_length: int = 0
    spool: Spool | None = None
    sinks: dict[LayerKey, Tensor] = field(default_factory=dict)
    _unsettled: int = 0

    def advance(self, start: int, ids: Tensor, prompt: PromptLayout) -> None:
        """Begins a call at position `start`; what was recorded from there on is no longer so."""
        if start < self.length:
            self.steps = [step for step in self.steps if step.first < start]
            for step in self.steps:  # of candidates that were read side by side, some were not taken
                is_stale = step.rows >= start
                step.rows, step.targets = (
                    step.rows.masked_fill(is_stale, -1),
                    step.targets.masked_fill(is_stale, -1),
                )
            self.ids = [(place, piece[:, : start - place]) for place, piece in self.ids if place < start]
        self.ids.append((start, ids))
        self.prompt, self.length = prompt, start + ids.shape[1]

    def add(self, step: Step, layer: LayerKey, weights: Tensor) -> None:
        """Keeps the weights of a layer."""
        step.weights[layer] = weights if self.spool is None else self.spool.put(layer, weights)

    def begin(self, step: Step) -> None:
        """Keeps a call; now and then all weights leave the device."""
        self.steps.append(step)
        self._unsettled += 1
        if self._unsettled >= SETTLE:
            self.settle()

    def settle(self) -> None:
        """Moves weights to the CPU."""
        for step in self.steps[-self._unsettled - 1 :]:
            for layer, weights in step.weights.items():
                if isinstance(weights, Tensor):
                    step.weights[layer] = weights.float().cpu()
        self._unsettled = 0

    def assembled(self) -> Step:
        """All rows as one step, by layer `(batch, heads, rows, keys)` in fp32 on the CPU, 0 where a row is missing.

        The log goes on with that step in place of its own, so that nothing is held twice.
        """
        rows, targets = (
            torch.cat([getattr(step, name) for step in self.steps], 1) for name in ("rows", "targets")
        )
        whole = Step(rows, targets, min(step.first for step in self.steps))
        for layer in list(dict.fromkeys(key for step in self.steps for key in step.weights)):
            whole.weights[layer] = self._joined(layer, rows)
        self.steps, self._unsettled = [whole], 0
        return whole

    def _joined(self, layer: LayerKey, rows: Tensor) -> Tensor:
        first = self.steps[0].weights[layer].shape
        joined = self._room(layer, (*first[:2], rows.shape[1], self.length))
        place = 0
        for step in self.steps:
            held = step.weights.pop(layer)
            part = held if isinstance(held, Tensor) else self._read(layer, held)
            count, keys = part.shape[2], min(part.shape[3], self.length)  # candidates not taken fall away
            joined[:, :, place : place + count, :keys] = part[..., :keys].float().cpu()
            place += count
        if self.spool is not None:
            self.spool.drop(layer)
        if bool((rows < 0).any()):
            joined.masked_fill_((rows < 0)[:, None, :, None], 0.0)
        return joined

    def _room(self, layer: LayerKey, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape) if self.spool is None else self.spool.whole(layer, shape)

    def _read(self, layer: LayerKey, stored: Stored) -> Tensor:
        assert self.spool is not None
        return self.spool.get(layer, stored)


def predicted_bytes(batch: int, layers: int, heads: int, rows: int, keys: int, early: int) -> int:
    """The most bytes that a recording holds: its weights in fp32, and one layer once more while its steps are joined.

    Args:
        batch: number of samples.
        layers: layers to keep; 1 where they are averaged.
        heads: heads to keep; 1 where they are averaged.
        rows: rows of a sample.
        keys: how long each is in the end.
        early: how long all of them together were when they were recorded, see `recorded_keys`.

    Example:
        >>> predicted_bytes(1, 8, 32, 128, 3000, 128 * 2900) / 2**20
        420.3125
    """
    return 4 * batch * heads * (layers * rows * keys + early)


def recorded_keys(rows: str | Sequence[int], prompt: int, longest: int) -> list[int]:
    """How many keys every row of a prompt's recording has when it is recorded, the most there can be.

    Args:
        rows: the choice, see `la.record`.
        prompt: where the answer begins.
        longest: where it ends at the latest.

    Example:
        >>> recorded_keys("generated", 10, 13)
        [10, 11, 12]
    """
    if not isinstance(rows, str):
        return [max(prompt, row + 1) for row in rows]
    answer = list(range(prompt, max(longest, prompt + 1)))
    own = [prompt] * prompt
    return {"generated": answer, "last": answer[:1], "prompt": own, "all": own + answer}[rows]


def wanted_rows(
    rows: str | Sequence[int], layout: PromptLayout, queries: slice, prompt_length: int, is_prompt: bool
) -> tuple[Tensor, Tensor]:
    """Which queries of a call are recorded, and which tokens they are about.

    Args:
        rows: the choice, see `la.record`.
        layout: of all positions processed so far.
        queries: the positions of the call's queries.
        prompt_length: number of prompt positions, padding included; the next position is the first answer token.
        is_prompt: whether the call processes prompt tokens.

    Returns:
        `(batch, queries)`, True at queries to record twice as `(about themselves, about the next token)`.
    """
    count = queries.stop - queries.start
    none = torch.zeros(layout.batch, count, dtype=torch.bool)
    if not is_prompt:
        # Every token of an answer is recorded, also those after its end, which are left out later.
        return _listed(rows, none, queries, prompt_length), ~none if rows in ("generated", "all") else none
    kind = layout.to("cpu")
    valid, generated = kind.is_valid[:, queries], kind.is_generated[:, queries]
    own = (
        valid & ~generated
        if rows in ("prompt", "all")
        else _listed(rows, none, queries, prompt_length) & valid
    )
    following = none
    if rows in ("generated", "all", "last") and queries.start < prompt_length <= queries.stop:
        places = torch.arange(prompt_length)
        last = torch.where(kind.is_valid[:, :prompt_length], places, -1).amax(1)
        following = torch.arange(queries.start, queries.stop) == last[:, None]
    if rows in ("generated", "all"):
        following = following | generated
    return own, following


def _listed(rows: str | Sequence[int], none: Tensor, queries: slice, prompt_length: int) -> Tensor:
    """`(batch, queries)`, True at positions that were listed; negative ones count from the end of the prompt."""
    if isinstance(rows, str):
        return none
    chosen = {row if row >= 0 else prompt_length + row for row in rows}
    found = torch.tensor([place in chosen for place in range(queries.start, queries.stop)])
    return found.expand_as(none)
