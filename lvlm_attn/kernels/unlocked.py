"""Visibilities that only open keys ahead: the backend's causal attention joined with attention to those few keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.correction import merge
from lvlm_attn.kernels.log_sum_exp import flash
from lvlm_attn.kernels.packing import combined_groups, combined_tables, has_too_many_groups
from lvlm_attn.kernels.torch_path import Rows, is_open, mask_rows
from lvlm_attn.kernels.visibility import Visibility, allowed_keys
from lvlm_attn.kernels.visible_path import CHUNK, KEPT_BYTES, shared_for_mask

MOST_GROUPS = 12
"""Groups of queries that attend ahead; every one is an attention of its own."""


def attend_unlocked(
    output: Tensor, log_sum_exp: Tensor, call: AttentionCall, visibilities: Sequence[Visibility]
) -> tuple[Tensor, Tensor] | None:
    """Adds the keys ahead that visibilities open to what the backend attended to.

    Args:
        output: `(batch, queries, heads, width)`, contiguous, changed in place; rows to which nothing is opened keep
            their bits, as do those at padding.
        log_sum_exp: `(batch, heads, queries)`, not changed.
        call: the attention call.
        visibilities: what restricts and what unlocks.

    Returns:
        Output and log-sum-exp with the visibilities; None, with nothing changed, if they hide keys, or open too many.
    """
    if any(item.predicate is not None for item in visibilities):
        return None
    if not all(item.reads_all_earlier(group) for item in visibilities for group in range(item.groups)):
        return None
    pieces = shared_for_mask(call, visibilities, _pieces, lambda: _pieces(call, visibilities))
    if pieces is None:
        return None
    if pieces:
        log_sum_exp = log_sum_exp.clone()
    columns = key = value = torch.empty(0)
    for piece in pieces:
        if piece.columns is not columns:
            columns = piece.columns
            key, value = call.key.index_select(2, columns), call.value.index_select(2, columns)
        rows = piece.rows
        ahead = flash(rows.take(call.query), key, value, piece.mask, call.scaling)
        old, total = rows.take(output, 1), rows.take(log_sum_exp)
        total = merge(old.transpose(1, 2), total, *ahead, piece.is_open)
        if rows.start is None and not rows.is_all:
            output.scatter_(1, rows.index_along(output, 1), old)
            log_sum_exp.scatter_(2, rows.index_along(log_sum_exp, 2), total)
        else:  # the outputs are written already
            rows.take(log_sum_exp).copy_(total)
    return output, log_sum_exp


class _Piece(NamedTuple):
    """Some rows that attend to the same keys ahead.

    Attributes:
        rows: the rows.
        columns: `(n,)`, the keys.
        mask: `(batch, 1, rows, n)`, added to the scores; None for 0.
        is_open: `(batch, 1, rows)`, True at rows that attend to any of them; None for all.
    """

    rows: Rows
    columns: Tensor
    mask: Tensor | None
    is_open: Tensor | None


def _pieces(call: AttentionCall, visibilities: Sequence[Visibility]) -> list[_Piece] | None:
    """The rows that attend ahead, group by group; None if that does not pay."""
    geometry, device = call.geometry, call.query.device
    if has_too_many_groups(visibilities):
        return None
    tables = combined_tables(visibilities)
    if tables is None or sum(any(row) for row in tables.later) > MOST_GROUPS:
        return None
    renumber = torch.tensor(tables.renumber, device=device)
    of_query, of_key = combined_groups(visibilities, geometry, renumber)
    is_valid = geometry.is_valid
    is_query = None if is_valid is None else Visibility.of_queries(is_valid.to(device), geometry)
    pieces: list[_Piece] = []
    size = 0
    for number, line in enumerate(tables.later):
        if not any(line):
            continue
        is_row = of_query == number
        is_row = is_row if is_query is None else is_row & is_query
        rows = Rows.of(is_row)
        is_ahead = torch.tensor([reach > 0 for reach in line], device=device)[of_key].any(0)
        columns = is_ahead[: geometry.written].nonzero()[:, 0]
        if rows is None or not len(columns):
            continue
        size += rows.index.numel() * len(columns)
        if size > min(KEPT_BYTES / 4, 0.4 * is_row.numel() * geometry.keys):
            return None
        for part in rows.parts(CHUNK):
            mask, sees = _opened(call, visibilities, part, columns)
            if bool(sees.any()):
                pieces.append(_Piece(part.together(), columns, mask, None if bool(sees.all()) else sees))
    return pieces


def _opened(
    call: AttentionCall, visibilities: Sequence[Visibility], rows: Rows, columns: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The mask of keys that visibilities open beyond the model's own mask, and which rows see any of them."""
    geometry = call.geometry
    index = rows.index + geometry.start
    mask = mask_rows(call, rows, columns)
    if mask is None:
        before = torch.ones(*index.shape, len(columns), dtype=torch.bool, device=index.device)
    else:
        before = is_open(mask).any(1)
    allowed, bias = allowed_keys(visibilities, geometry, index, before, call.query.dtype, columns)
    is_new = allowed & ~before & rows.is_touched[..., None]
    sees = is_new.any(-1)[:, None]
    if bias is None and bool(is_new.all()):
        return None, sees
    added = torch.zeros(is_new.shape, dtype=call.query.dtype, device=index.device) if bias is None else bias
    return added.masked_fill(~is_new, -torch.inf)[:, None], sees
