"""Visibility on every device: rows that read what plain causality does not let them, or less, computed again.

Rows go in chunks, so a boolean mask is never larger than a chunk of rows by all keys. Rows that may read nothing
but themselves need no attention at all: their output is their own value.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lvlm_attn.kernels.extra import ExtraKeys, with_extra
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows, mask_rows, row_outputs, row_weights, write_rows
from lvlm_attn.kernels.visibility import Visibility, readable_keys

CHUNK = 512
"""Rows computed at a time."""


def visible_mask(
    visibilities: Sequence[Visibility], mask: Tensor | None, rows: Rows, geometry: Geometry
) -> Tensor:
    """The mask of some rows under visibilities.

    Args:
        visibilities: what restricts and what unlocks.
        mask: the mask the backend was given; see `mask_rows`.
        rows: which rows.
        geometry: where the queries and keys stand.

    Returns:
        `(batch, 1 or heads, rows, keys)`, boolean, or additive where the backend's mask or a strength is.
    """
    base = mask_rows(mask, rows, geometry)
    index = rows.index + geometry.start
    if base is None:
        base = torch.ones(1, dtype=torch.bool, device=index.device).expand(
            *index.shape[:1], 1, index.shape[1], geometry.keys
        )
    if base.dtype == torch.bool:
        readable, bias = readable_keys(visibilities, geometry, index, base[:, 0])
        if bias is None:
            return readable[:, None]
        return bias.masked_fill(~readable, -torch.inf)[:, None]
    lowest = torch.finfo(base.dtype).min
    readable, bias = readable_keys(visibilities, geometry, index, (base > lowest / 2).any(1))
    kept = torch.where(base > lowest / 2, base, 0)
    total = kept if bias is None else kept + bias[:, None].to(kept.dtype)
    return total.masked_fill(~readable[:, None], -torch.inf)


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

    Returns:
        The output with these rows changed.
    """
    is_touched, is_alone = touched_queries(visibilities, geometry)
    for item in extras:
        found = item.touched(geometry)
        if found is not None:
            found = found.to(query.device)
            is_touched = found if is_touched is None else is_touched.to(query.device) | found
            is_alone = None if is_alone is None else is_alone.to(query.device) & ~found
    if is_touched is None:
        return output
    if is_alone is not None:
        output = _write_own_values(output, value, is_alone, geometry)
        is_touched = is_touched & ~is_alone
    rows = Rows.of(is_touched.to(query.device))
    if rows is None:
        return output
    for start in range(0, rows.index.shape[1], CHUNK):
        piece = rows.part(slice(start, start + CHUNK))
        readable = visible_mask(visibilities, mask, piece, geometry)
        keys, values, total = with_extra(key, value, readable, extras, piece, geometry)
        assert total is not None
        new = _attend(piece.take(query), keys, values, total, scaling, softcap)
        is_changed = piece.is_touched[:, None].expand(-1, new.shape[1], -1)
        output = write_rows(output, new, piece, is_changed)
    return output


def touched_queries(
    visibilities: Sequence[Visibility], geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """`(batch, queries)` True at queries that any visibility touches, and at those that read only themselves.

    Either is None where it holds for no query.
    """
    touched: Tensor | None = None
    alone: Tensor | None = None
    for item in visibilities:
        found = item.touched(geometry)
        if found is not None:
            touched = found if touched is None else touched | found
        single = item.self_only(geometry)
        # What another visibility unlocks is read too, so a row is alone only if it is the sole one to speak.
        if single is not None and all(other is item or other.later is None for other in visibilities):
            alone = single if alone is None else alone | single
    return touched, alone


def _write_own_values(output: Tensor, value: Tensor, is_alone: Tensor, geometry: Geometry) -> Tensor:
    first = geometry.start - geometry.first_key
    own = value[:, :, first : first + geometry.queries].transpose(1, 2)
    own = own.repeat_interleave(output.shape[2] // own.shape[2], 2)
    return torch.where(is_alone.to(output.device)[..., None, None], own.to(output.dtype), output)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None
) -> Tensor:
    if softcap is not None:
        return row_outputs(row_weights(query, key, scaling=scaling, mask=mask, softcap=softcap), value)
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
