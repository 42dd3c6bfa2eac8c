"""What the sites of an intervention are told: the forward call, and the layer as the intervention sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from lvlm_attn.families.encoder_patches import Encoded
from lvlm_attn.families.target import Target
from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.dispatch import Dispatch
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.layout.prompt import PromptLayout

T = TypeVar("T")


@dataclass(eq=False)
class Call:
    """One forward call of the language model inside a wrap.

    Attributes:
        target: the model.
        prompt: the layout of the prompt so far; generated positions may be missing at its end.
        start: index in the sequence of the first query (number of cached tokens).
        queries: number of queries.
        is_prompt: whether prompt tokens are processed.
        is_valid: `(batch, start + queries)`, False at padding, or None if nothing is padded.
        edit_limit: most bytes of weights that a free edit may hold per layer.
        inputs: the keyword arguments of the language model; `edit_embeds` may exchange some, embeddings aside.
        ids: `(batch, queries)`, the token ids of the queries.
        labels: `(batch, queries)`, what a plain forward was given as `labels` (-100 where nothing is to be
            predicted), or None.
        text_heads: runs the prompt without its images: takes layers, gives for each the head outputs
            `(batch, heads, head_dim)` of the last prompt token in fp32.
        kernels: which path computes edited attention.
        text_mask: what the model's own mask is, see `lvlm_attn.families.Family`.
        has_own_mask: whether the caller gave a dense attention mask, which may say anything.
        vision: what was read of the image encoder's attention (see `Intervention.vision`) for the images of a call;
            `lvlm_attn.families.encoder_patches.received` brings it to the positions of the prompt.
        details: what interventions found out about the request in `lvlm.generate`, by the name of the method.
        request: what `lvlm.generate` asks, as interventions rewrote it; None in a plain call of the model.
        views: how many views are decoded beside the rows of the request; theirs come after all of those.
        interventions: all interventions of the wrap, in order.
        memo: what layers share.
        entering: `(batch, queries, hidden)`, what entered the layer that is running, where a `modules` site needs it.
        plans: what is kept of layers from one generated token to the next, by number; None in calls of anything else.
    """

    target: Target
    prompt: PromptLayout
    start: int
    queries: int
    is_prompt: bool
    is_valid: Tensor | None
    text_heads: Callable[[Sequence[int]], dict[int, Tensor]]
    edit_limit: int
    inputs: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    labels: Tensor | None = None
    kernels: Dispatch = field(default_factory=Dispatch)
    text_mask: str = "causal"
    has_own_mask: bool = False
    vision: tuple[Encoded, ...] | None = None
    details: dict[str, Any] = field(default_factory=dict)
    request: Any = None
    views: int = 0
    interventions: tuple[Any, ...] = ()
    memo: Memo = field(default_factory=Memo)
    entering: Tensor | None = None
    plans: dict[int, Any] | None = None

    @property
    def length(self) -> int:
        """Number of positions processed once this call is done."""
        return self.start + self.queries

    @property
    def attends_ahead(self) -> bool:
        """Whether the model's own mask lets queries of this call attend to later positions."""
        return self.is_prompt and self.queries > 1 and self.text_mask.startswith("bidirectional")

    @cached_property
    def layout(self) -> PromptLayout:
        """What every position processed so far is, those of this call included."""
        return extended(self.prompt, self.length)

    def text_queries(self, device: torch.device) -> Tensor:
        """`(batch, queries)`, True at queries that are text and have an image before them.

        The same tensor for every layer on a device, so that `rows_of` packs its rows once.
        """
        return self.memo.shared((Call.text_queries, device), lambda: self._text_queries().to(device))

    def _text_queries(self) -> Tensor:
        if not self.is_prompt and self.queries == 1:
            return self.prompt.has_image[:, None]
        return self.layout.after_image[:, self.start : self.length]

    def rows_of(self, is_touched: Tensor) -> Rows | None:
        """Packs touched rows, once per call for the same tensor."""
        return self.memo.shared((Rows, is_touched), lambda: self._packed(is_touched))

    def _packed(self, is_touched: Tensor) -> Rows | None:
        whole = self.whole_of(is_touched)
        if whole is is_touched:
            return Rows.of(is_touched)
        rows = self.rows_of(whole)
        if rows is None:
            return None
        return Rows(rows.index, rows.is_touched & is_touched.gather(1, rows.index), rows.is_all)

    def part_of(self, is_touched: Tensor, keeps: Tensor) -> Tensor:
        """Touched rows of some samples only; they are packed as those of all samples are, and nothing is waited for.

        Args:
            is_touched: `(batch, queries)`, a tensor that layers share.
            keeps: `(batch,)`, the samples.

        Returns:
            `(batch, queries)`.
        """
        part = is_touched & keeps[:, None]
        self.memo.kept[Call.part_of, part] = is_touched
        return part

    def whole_of(self, is_touched: Tensor) -> Tensor:
        """What `part_of` took a tensor from, or the tensor itself: among its rows are those that are touched."""
        found: Tensor = self.memo.kept.get((Call.part_of, is_touched), is_touched)
        return found

    def rows_of_any(self, touched: Sequence[Tensor]) -> Rows | None:
        """Packs rows that any of some tensors touches, once per call for the same tensors, or wholes of them."""
        wholes = tuple(dict.fromkeys(map(self.whole_of, touched)))
        if len({*touched}) == 1:
            return self.rows_of(touched[0])
        if len(wholes) == 1:
            return self.rows_of(wholes[0])
        return self.memo.shared((Rows, *wholes), lambda: Rows.of(torch.stack(wholes).any(0)))

    def geometry(self, keys: int, window: int | None) -> Geometry:
        """Where the queries and `keys` key columns of an attention call stand."""
        return Geometry(self.start, self.queries, keys, self.is_valid, window)


@dataclass(eq=False)
class State:
    """What one intervention holds in one wrap.

    Attributes:
        memory: what it remembers of the current prompt; a new dictionary with every prompt.
        stats: what it counted in this wrap, for its `summarise`.
        counts: what the runtime counted of it, for the report of an intervention without a `summarise` of its own.
    """

    memory: dict[Any, Any] = field(default_factory=dict)
    stats: dict[Any, Any] = field(default_factory=dict)
    counts: dict[Hashable, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, slots=True)
class Layer:
    """A decoder layer in one forward call, as one intervention sees it.

    Sites that belong to no layer (`begin`, `edit_embeds`, `edit_logits`) get the same context with `index` None.

    Attributes:
        index: which decoder layer, from 0; None at sites that belong to the whole call.
        call: the forward call.
        state: where `memory` and `stats` are kept.
    """

    index: Any
    call: Call
    state: State

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int):
            raise TypeError(f"A layer is compared with {other}; compare its number, layer.index == {other}.")
        return self is other

    __hash__ = object.__hash__

    @property
    def layout(self) -> PromptLayout:
        """What every position processed so far is, those of this call included."""
        return self.call.layout

    @property
    def is_prompt(self) -> bool:
        """Whether this call processes prompt tokens rather than generated ones."""
        return self.call.is_prompt

    @property
    def queries(self) -> slice:
        """The positions of this call's queries in the layout."""
        return slice(self.call.start, self.call.length)

    @property
    def memory(self) -> dict[Any, Any]:
        """What the intervention remembers of this prompt; empty at its start."""
        return self.state.memory

    @property
    def stats(self) -> dict[Any, Any]:
        """What the intervention did in this wrap, for `report`."""
        return self.state.stats

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """A value that all layers of this call share: `make()` at the first one that asks.

        Keys belong to the intervention: two interventions may use the same key.

        Args:
            key: any hashable value; tensors count by identity.
            make: makes the value.

        Example:
            >>> rows = layer.shared("rows", lambda: layer.layout.is_text[:, layer.queries])  # doctest: +SKIP
        """
        return self.call.memo.shared((self.state, key), make)


def extended(layout: PromptLayout, length: int) -> PromptLayout:
    """The layout with generated positions added, or dropped, up to `length`."""
    if length < layout.length:
        return layout.crop(length)
    return layout.append(length - layout.length) if length > layout.length else layout
