"""One forward call of the language model inside a wrap, and the calls that are running now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_attn.interventions.base import Intervention, Layer
from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.dispatch import Dispatch
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.layout.prompt import Kind, PromptLayout

if TYPE_CHECKING:
    from lvlm_attn.families.encoder_patches import Encoded


@dataclass(eq=False)
class Call:
    """What the sites of one wrap need to know while the language model reads some tokens.

    Attributes:
        owner: the session whose call it is.
        editors: interventions with an attention site by layer, as (place in the wrap, intervention).
        prompt: the layout of the prompt so far; generated positions may be missing at its end.
        start: index in the sequence of the first query (number of cached tokens).
        queries: number of queries.
        is_prompt: whether prompt tokens are read.
        is_valid: `(batch, start + queries)`, False at padding, or None if nothing is padded.
        memory: what interventions remember of this prompt, by place.
        stats: what interventions did in this wrap, by place.
        inputs: the keyword arguments of the language model; `edit_embeds` may exchange some, embeddings aside.
        ids: `(batch, queries)`, the token ids of the queries.
        labels: `(batch, queries)`, what a plain forward was given as `labels` (-100 where nothing is to be
            predicted), or None.
        kernels: which path computes edited attention.
        text_mask: what the model's own mask is, see `lvlm_attn.families.Family`.
        has_own_mask: whether the caller gave a dense attention mask, which may say anything.
        memo: what the layers of this call share; empty once the call is over.
        text_heads: reads the prompt without its images: takes layers, gives for each the head outputs
            `(batch, heads, head_dim)` of the last prompt token in fp32.
        vision: what was read of the image encoder's attention (see `Intervention.vision`) for the images of a call;
            `lvlm_attn.families.encoder_patches.received` brings it to the positions of the prompt.
    """

    owner: object
    editors: dict[int, list[tuple[int, Intervention]]]
    prompt: PromptLayout
    start: int
    queries: int
    is_prompt: bool
    is_valid: Tensor | None
    memory: dict[int, dict[Any, Any]]
    stats: dict[int, dict[Any, Any]]
    edit_limit: int
    inputs: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    labels: Tensor | None = None
    text_heads: Callable[[Sequence[int]], dict[int, Tensor]] | None = None
    kernels: Dispatch = field(default_factory=Dispatch)
    text_mask: str = "causal"
    has_own_mask: bool = False
    memo: Memo = field(default_factory=Memo)
    vision: tuple[Encoded, ...] | None = None

    @property
    def length(self) -> int:
        """Number of positions read once this call is done."""
        return self.start + self.queries

    @property
    def attends_ahead(self) -> bool:
        """Whether the model's own mask lets queries of this call attend to later positions."""
        return self.is_prompt and self.queries > 1 and self.text_mask.startswith("bidirectional")

    @cached_property
    def layout(self) -> PromptLayout:
        """What every position read so far is, those of this call included."""
        return extended(self.prompt, self.length)

    def text_queries(self, device: torch.device) -> Tensor:
        """`(batch, queries)`, True at queries that are text and have an image before them.

        The same tensor for every layer on a device, so that `rows_of` packs its rows once.
        """

        def made() -> Tensor:
            if not self.is_prompt and self.queries == 1:
                return self.prompt.has_image[:, None].to(device)
            return self.layout.after_image[:, self.start : self.length].to(device)

        return self.memo.shared((Call.text_queries, device), made)

    def rows_of(self, is_touched: Tensor) -> Rows | None:
        """Packs touched rows, once per call for the same tensor."""
        return self.memo.shared((Rows, is_touched), lambda: Rows.of(is_touched))

    def geometry(self, keys: int, window: int | None) -> Geometry:
        """Where the queries and `keys` key columns of an attention call stand."""
        return Geometry(self.start, self.queries, keys, self.is_valid, window)

    def memory_of(self, item: Intervention) -> dict[Any, Any]:
        """What an intervention of this call's wrap remembers of the prompt, for sites that name no layer."""
        return self.memory.setdefault(self._place_of(item), {})

    def stats_of(self, item: Intervention) -> dict[Any, Any]:
        """What an intervention of this call's wrap did, for sites that name no layer."""
        return self.stats.setdefault(self._place_of(item), {})

    def _place_of(self, item: Intervention) -> int:
        present = cast("Any", self.owner).interventions
        return next(place for place, other in enumerate(present) if other is item)

    def layer(self, index: int, place: int) -> Layer:
        """The layer as the intervention at `place` sees it."""
        return Layer.at(index, self, place)


@dataclass(eq=False)
class TextPass:
    """A pass of our own in which no intervention acts: over the prompt without its images, or over all of it.

    Attributes:
        seen: layers whose attention went through the registry.
        capture: called for every layer with its index and its query, key and value (see `registry.attend`).
    """

    seen: set[int] = field(default_factory=set)
    capture: Callable[[int, Tensor, Tensor, Tensor], None] | None = None


@dataclass(frozen=True, eq=False)
class Silence:
    """A call in which the wrap of `owner` does not act, and others may."""

    owner: object


ACTIVE: ContextVar[tuple[Call | TextPass | Silence, ...]] = ContextVar("lvlm_attn_active", default=())
"""The calls running in this thread or task, outermost wrap first."""


def active_calls() -> tuple[Call, ...]:
    """The calls whose sites are to act; none during a text-only pass."""
    active = ACTIVE.get()
    if active and isinstance(active[-1], TextPass):
        return ()
    return tuple(call for call in active if isinstance(call, Call))


def in_text_pass() -> TextPass | None:
    """The text-only pass that is running, or None."""
    active = ACTIVE.get()
    return active[-1] if active and isinstance(active[-1], TextPass) else None


def extended(layout: PromptLayout, length: int) -> PromptLayout:
    """The layout with generated positions added, or dropped, up to `length`."""
    if length < layout.length:
        return layout.crop(length)
    return layout.append(length - layout.length) if length > layout.length else layout


def extended_validity(layout: PromptLayout, length: int) -> Tensor | None:
    """`(batch, length)`, False at padding; None where nothing is padded. Generated positions are valid."""
    if not bool((layout.kind == Kind.PAD).any()):
        return None
    return pad(layout.is_valid, (0, length - layout.length), value=True)
