"""Visibility on every device: rows that read what plain causality does not let them, or less, computed again.

Rows go in chunks, so a boolean mask is never larger than a chunk of rows by all keys. Rows that may read nothing
but themselves need no attention at all: their output is their own value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lvlm_attn.kernels.extra import ExtraKeys, with_extra
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows, mask_rows, row_outputs, row_weights, write_rows
from lvlm_attn.kernels.visibility import Visibility, readable_keys

CHUNK = 512
"""Rows computed at a time."""

KEPT_BYTES = 2**26
"""Most bytes of masks kept for the next layer; above it every layer makes its own, chunk by chunk."""


KEPT_PLANS = 8
"""Most plans kept in one call: of few rows and of touched ones, with and without a window, and another device."""


def visible_mask(
    visibilities: Sequence[Visibility],
    mask: Tensor | None,
    rows: Rows,
    geometry: Geometry,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The mask of some rows under visibilities.

    Args:
        visibilities: what restricts and what unlocks.
        mask: the mask the backend was given; see `mask_rows`.
        rows: which rows.
        geometry: where the queries and keys stand.
        dtype: of an additive mask that a strength makes.

    Returns:
        `(batch, 1 or heads, rows, keys)`, boolean, or additive where the backend's mask or a strength is. In an
        additive mask the lowest finite number blocks, so that no row is all minus infinity.
    """
    base = mask_rows(mask, rows, geometry)
    index = rows.index + geometry.start
    kept: Tensor | None = None
    if base is None:
        shape = (*index.shape, geometry.keys)
        may_read = torch.ones((), dtype=torch.bool, device=index.device).expand(shape)
    elif base.dtype == torch.bool:
        may_read = base.any(1)
    else:
        is_open = base > torch.finfo(base.dtype).min / 2
        may_read, kept, dtype = is_open.any(1), torch.where(is_open, base, 0), base.dtype
    readable, bias = readable_keys(visibilities, geometry, index, may_read, dtype)
    if kept is not None:
        kept = kept if bias is None else kept + bias[:, None]
    elif bias is not None:
        kept = bias[:, None]
    readable = readable[:, None]
    return readable if kept is None else kept.masked_fill(~readable, torch.finfo(dtype).min)


def write_visible(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    extras: Sequence[ExtraKeys] = (),
    memo: dict[Any, Any] | None = None,
) -> Tensor:
    """Computes the rows that visibilities or extra keys touch and puts them into the output of the backend.

    Args:
        output: `(batch, queries, heads, width)` of plain attention; rows that are not touched keep their bits.
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, width)`.
        visibilities: what restricts and what unlocks.
        geometry: where the queries and keys stand.
        mask: the mask the backend was given.
        scaling: factor on the scores.
        softcap: bound of the scores by tanh, for models that have one.
        extras: keys from elsewhere that share the softmax.
        memo: keeps what layers with the same visibilities, window and mask share, while a call runs.

    Returns:
        The output with these rows changed.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    if extras:
        plan = _plan(visibilities, geometry, query.device, extras)
    else:
        plan = _shared_plan(visibilities, geometry, query.device, mask, dtype, memo)
    if plan.is_alone is not None:
        own = _own_values(value, geometry, query.shape[1])
        output = torch.where(plan.is_alone[..., None, None], own.to(output.dtype), output)
    return _write_pieces(
        output, query, key, value, plan, visibilities, geometry, mask, scaling, softcap, extras
    )


def attend_few(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None = None,
    memo: dict[Any, Any] | None = None,
) -> Tensor | None:
    """Computes a call in which most queries read only themselves, without the backend: its time is that of the others.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, width)`.
        visibilities: what restricts and what unlocks.
        geometry: where the queries and keys stand.
        mask: the mask the backend was given.
        scaling: factor on the scores.
        softcap: bound of the scores by tanh, for models that have one.
        memo: see `write_visible`.

    Returns:
        `(batch, queries, heads, width)`, or None if half of the queries or more read other keys too.
    """
    if query.shape[2] == 1:
        return None
    dtype = torch.promote_types(query.dtype, torch.float32)
    plan = _shared_plan(visibilities, geometry, query.device, mask, dtype, memo, of_few=True)
    if plan.is_alone is None:
        return None
    output = _own_values(value, geometry, query.shape[1])
    return _write_pieces(output, query, key, value, plan, visibilities, geometry, mask, scaling, softcap)


def _write_pieces(
    output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: _Plan,
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    extras: Sequence[ExtraKeys] = (),
) -> Tensor:
    """Computes the rows of a plan and puts them into the output; see `write_visible`."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    for place, piece in enumerate(plan.pieces):
        readable = plan.masks.get(place)
        if readable is None:
            readable = visible_mask(visibilities, mask, piece, geometry, dtype)
            if plan.keeps_masks:
                plan.masks[place] = readable
        keys, values, total = with_extra(key, value, readable, extras, piece, geometry)
        assert total is not None
        new = _attend(piece.take(query), keys, values, total, scaling, softcap)
        is_changed = piece.is_touched[:, None].expand(-1, new.shape[1], -1)
        output = write_rows(output, new, piece, is_changed)
    return output


@dataclass
class _Plan:
    """The rows of one attention call to compute again, in pieces, and their masks as far as they are known."""

    is_alone: Tensor | None = None
    pieces: list[Rows] = field(default_factory=list)
    masks: dict[int, Tensor] = field(default_factory=dict)
    keeps_masks: bool = False
    held: tuple[Any, ...] = ()


def _plan(
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    device: torch.device,
    extras: Sequence[ExtraKeys] = (),
) -> _Plan:
    is_touched, is_alone = touched_queries(visibilities, geometry, device)
    for item in extras:
        found = item.touched(geometry)
        if found is not None:
            found = found.to(device)
            is_touched = found if is_touched is None else is_touched | found
            is_alone = None if is_alone is None else is_alone & ~found
    if is_touched is None:
        return _Plan()
    return _Plan(is_alone, _pieces(is_touched if is_alone is None else is_touched & ~is_alone))


def _plan_of_few(visibilities: Sequence[Visibility], geometry: Geometry, device: torch.device) -> _Plan:
    """All rows that read other keys than their own; an empty plan where these are half of the queries or more."""
    _, is_alone = touched_queries(visibilities, geometry, device)
    if is_alone is None or 2 * int((~is_alone).sum(1).max()) >= geometry.queries:
        return _Plan()
    return _Plan(is_alone, _pieces(~is_alone))


def _pieces(is_row: Tensor) -> list[Rows]:
    rows = Rows.of(is_row)
    if rows is None:
        return []
    return [rows.part(slice(start, start + CHUNK)) for start in range(0, rows.index.shape[1], CHUNK)]


def _shared_plan(
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    device: torch.device,
    mask: Any,
    dtype: torch.dtype,
    memo: dict[Any, Any] | None,
    *,
    of_few: bool = False,
) -> _Plan:
    """The plan of an earlier layer of the call if it serves here too."""
    make = _plan_of_few if of_few else _plan
    if memo is None:
        return make(visibilities, geometry, device)
    key = ("plan", of_few, *map(id, visibilities), id(mask), geometry.keys, geometry.window, device, dtype)
    if key not in memo:
        kept = [other for other in memo if other[0] == "plan"]
        if len(kept) >= KEPT_PLANS:  # a model that gives every layer a mask of its own shares nothing
            del memo[kept[0]]
        plan = memo[key] = make(visibilities, geometry, device)
        # What the key names has to live as long as the key.
        plan.held = (*visibilities, mask)
        size = sum(piece.index.numel() for piece in plan.pieces) * geometry.keys
        plan.keeps_masks = size * (4 if any(item.strength != 1 for item in visibilities) else 1) <= KEPT_BYTES
    plan = memo[key]
    assert isinstance(plan, _Plan)
    return plan


def touched_queries(
    visibilities: Sequence[Visibility], geometry: Geometry, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """`(batch, queries)` True at queries that any visibility touches, and at those that read only themselves.

    Either is None where it holds for no query.
    """
    touched: Tensor | None = None
    alone: Tensor | None = None
    for item in visibilities:
        found = item.touched(geometry)
        if found is not None:
            found = found.to(device)
            touched = found if touched is None else touched | found
        single = item.self_only(geometry)
        # What another visibility unlocks is read too, so a row is alone only if no other one unlocks anything.
        if single is not None and all(other is item or other.later is None for other in visibilities):
            single = single.to(device)
            alone = single if alone is None else alone | single
    return touched, alone


def _own_values(value: Tensor, geometry: Geometry, heads: int) -> Tensor:
    """`(batch, queries, heads, width)`: what every query gives that reads itself alone."""
    first = geometry.start - geometry.first_key
    own = value[:, :, first : first + geometry.queries].transpose(1, 2)
    return own.repeat_interleave(heads // own.shape[2], 2)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    if softcap is not None:
        return row_outputs(row_weights(query, key, scaling=scaling, mask=mask, softcap=softcap), value)
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
