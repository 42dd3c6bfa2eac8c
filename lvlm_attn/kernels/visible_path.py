"""Visibility on every device: rows that attend to more or less than plain causality lets them, computed again.

Rows go in chunks, so a boolean mask is never larger than a chunk of rows by all keys. Rows that attend to nothing
but themselves need no attention at all: their output is their own value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.extra import ExtraKeys, with_extra
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import (
    Rows,
    attend_masked,
    is_open,
    mask_rows,
    masked,
    row_scores,
    write_rows,
)
from lvlm_attn.kernels.visibility import Visibility, allowed_keys

Made = TypeVar("Made")

CHUNK = 512
"""Rows computed at a time."""

KEPT_BYTES = 2**26
"""Most bytes of masks kept for the next layer; above it every layer makes its own, chunk by chunk."""

KEPT_PLANS = 12
"""Most plans kept in one call: of few rows, touched ones and keys ahead, with and without a window, and so on."""


def visible_mask(
    call: AttentionCall, visibilities: Sequence[Visibility], rows: Rows, columns: Tensor | None = None
) -> Tensor | None:
    """The mask of some rows of a call under visibilities; `mask_rows` where there are none.

    Args:
        call: the attention call.
        visibilities: what restricts and what unlocks.
        rows: which rows.
        columns: `(n,)` or `(batch, n)`, which key columns; None for all.

    Returns:
        `(batch, 1 or heads, rows, keys)`, boolean, or additive where the backend's mask or a strength is. In an
        additive mask the lowest finite number blocks, so that no row is all minus infinity.
    """
    geometry, dtype = call.geometry, call.score_dtype
    base = mask_rows(call, rows, columns)
    if not visibilities:
        return base
    index = rows.index + geometry.start
    kept: Tensor | None = None
    if base is None:
        shape = (*index.shape, geometry.keys if columns is None else columns.shape[-1])
        may_attend = torch.ones((), dtype=torch.bool, device=index.device).expand(shape)
    elif base.dtype == torch.bool:
        may_attend = base.any(1)
    else:
        may_attend, dtype = is_open(base), base.dtype
        may_attend, kept = may_attend.any(1), torch.where(may_attend, base, 0)
    allowed, bias = allowed_keys(visibilities, geometry, index, may_attend, dtype, columns)
    if kept is not None:
        kept = kept if bias is None else kept + bias[:, None]
    elif bias is not None:
        kept = bias[:, None]
    allowed = allowed[:, None]
    return allowed if kept is None else kept.masked_fill(~allowed, torch.finfo(dtype).min)


def masked_scores(call: AttentionCall, rows: Rows, visibilities: Sequence[Visibility] = ()) -> Tensor:
    """The scores of some rows, `(batch, heads, rows, keys)`, minus infinity at keys they may not attend to."""
    scores = row_scores(rows.take(call.query), call.key, scaling=call.scaling, softcap=call.softcap)
    return masked(scores, visible_mask(call, visibilities, rows))[0]


def write_visible(
    output: Tensor,
    call: AttentionCall,
    visibilities: Sequence[Visibility],
    extras: Sequence[ExtraKeys] = (),
) -> Tensor:
    """Computes the rows that visibilities or extra keys touch and puts them into the output of the backend.

    Args:
        output: `(batch, queries, heads, width)` of plain attention; rows that are not touched stay bit-identical.
        call: the attention call; layers with the same visibilities, window and mask share what its memo keeps.
        visibilities: what restricts and what unlocks.
        extras: keys from elsewhere that share the softmax.

    Returns:
        The output with these rows changed.
    """
    plan = _plan(call, visibilities, extras) if extras else _shared_plan(call, visibilities, _plan)
    if plan.is_alone is not None:
        output = torch.where(plan.is_alone[..., None, None], _own_values(call).to(output.dtype), output)
    return _write_pieces(output, call, plan, visibilities, extras)


def attend_few(call: AttentionCall, visibilities: Sequence[Visibility]) -> Tensor | None:
    """Computes a call in which most queries attend only to themselves, without the backend, in the time of the others.

    Args:
        call: the attention call, see `write_visible`.
        visibilities: what restricts and what unlocks.

    Returns:
        `(batch, queries, heads, width)`, or None if half of the queries or more attend to other keys too.
    """
    if call.geometry.queries == 1:
        return None
    plan = _shared_plan(call, visibilities, _plan_of_few)
    return None if plan.is_alone is None else _write_pieces(_own_values(call), call, plan, visibilities)


def _write_pieces(
    output: Tensor,
    call: AttentionCall,
    plan: _Plan,
    visibilities: Sequence[Visibility],
    extras: Sequence[ExtraKeys] = (),
) -> Tensor:
    """Computes the rows of a plan and puts them into the output; see `write_visible`."""
    for place, piece in enumerate(plan.pieces):
        known = place in plan.masks
        allowed = plan.masks[place] if known else visible_mask(call, visibilities, piece)
        if plan.keeps_masks:
            plan.masks[place] = allowed
        keys, values, total = with_extra(call, allowed, extras, piece)
        assert total is not None
        new = attend_masked(piece.take(call.query), keys, values, total, call)
        is_changed = piece.is_touched[:, None].expand(-1, new.shape[1], -1)
        output = write_rows(output, new, piece, is_changed)
    return output


@dataclass
class _Plan:
    """The rows of one attention call to compute again, in pieces, and their masks as far as they are known."""

    is_alone: Tensor | None = None
    pieces: list[Rows] = field(default_factory=list)
    masks: dict[int, Tensor | None] = field(default_factory=dict)
    keeps_masks: bool = False

    @staticmethod
    def of(is_row: Tensor, is_alone: Tensor | None) -> _Plan:
        """The rows `(batch, queries)` in pieces, beside those that attend to themselves alone."""
        rows = Rows.of(is_row)
        return _Plan(is_alone, [] if rows is None else list(rows.parts(CHUNK)))


def _plan(call: AttentionCall, visibilities: Sequence[Visibility], extras: Sequence[ExtraKeys] = ()) -> _Plan:
    geometry, device = call.geometry, call.query.device
    is_touched, is_alone = touched_queries(visibilities, geometry, device)
    beside = _any((item.touched(geometry) for item in extras), device)
    if beside is not None:
        is_touched = _any((is_touched, beside), device)
        is_alone = None if is_alone is None else is_alone & ~beside
    if is_touched is None:
        return _Plan()
    return _Plan.of(is_touched if is_alone is None else is_touched & ~is_alone, is_alone)


def _plan_of_few(call: AttentionCall, visibilities: Sequence[Visibility]) -> _Plan:
    """All rows that attend to other keys than their own; an empty plan where these are half of the queries or more."""
    _, is_alone = touched_queries(visibilities, call.geometry, call.query.device)
    if is_alone is None or 2 * int((~is_alone).sum(1).max()) >= call.geometry.queries:
        return _Plan()
    return _Plan.of(~is_alone, is_alone)


def _shared_plan(
    call: AttentionCall,
    visibilities: Sequence[Visibility],
    make: Callable[[AttentionCall, Sequence[Visibility]], _Plan],
) -> _Plan:
    """The plan of an earlier layer of the forward call if it serves here too."""
    geometry = call.geometry

    def made() -> _Plan:
        plan = make(call, visibilities)
        size = sum(piece.index.numel() for piece in plan.pieces) * geometry.keys
        plan.keeps_masks = size * (4 if any(item.strength != 1 for item in visibilities) else 1) <= KEPT_BYTES
        return plan

    return shared_for_mask(call, visibilities, make, made)


def shared_for_mask(
    call: AttentionCall, visibilities: Sequence[Visibility], name: Hashable, make: Callable[[], Made]
) -> Made:
    """What layers share that have the same visibilities, window and mask.

    Bounded, since a model whose layers have masks of their own shares none.
    """
    geometry, device = call.geometry, call.query.device
    key = (name, *visibilities, call.mask, geometry.keys, geometry.window, device, call.score_dtype)
    return call.memo.shared(shared_for_mask, lambda: Memo(KEPT_PLANS)).shared(key, make)


def touched_queries(
    visibilities: Sequence[Visibility], geometry: Geometry, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """`(batch, queries)` True at queries that any visibility touches, and at those that attend only to themselves.

    Either is None where it holds for no query.
    """
    # What another visibility unlocks counts as well, so a row is alone only if no other one unlocks anything.
    lone = [
        item for item in visibilities if all(other is item or other.later is None for other in visibilities)
    ]
    touched = _any((item.touched(geometry) for item in visibilities), device)
    return touched, _any((item.self_only(geometry) for item in lone), device)


def _any(found: Iterable[Tensor | None], device: torch.device) -> Tensor | None:
    """Where any of some booleans is True; None if there are none."""
    known = [item.to(device) for item in found if item is not None]
    return torch.stack(known).any(0) if known[1:] else known[0] if known else None


def _own_values(call: AttentionCall) -> Tensor:
    """`(batch, queries, heads, width)`: what every query gives that attends to itself alone."""
    geometry, heads = call.geometry, call.query.shape[1]
    first = geometry.start - geometry.first_key
    own = call.value[:, :, first : first + geometry.queries].transpose(1, 2)
    return own.repeat_interleave(heads // own.shape[2], 2)
