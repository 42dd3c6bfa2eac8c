"""Rows whose weight is moved between classes of keys: the output of plain attention, corrected in place.

A redistribution leaves a row's weights proportional inside each class of keys, so with the row's log-sum-exp the new
output is the old one times the factor of one class, plus what the keys of the other classes gain or lose beside that.
Only those other keys are read again: all but the plain patches, or all but the text where that is longer than the
image; what mass they leave is that of the class that is not read.

The rounding of the old output is multiplied with it, and a mass found as a rest has the error of a sum near 1. Where
either could show, a tile of rows computes its outputs anew from all keys, without a word to the host: where the rest
is below `LEAST_REST` although the row may be changed, the factor above `MOST_FACTOR`, or the factor times the norm
of the old output above `loss_of(dtype)` times that of the new one.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.common import (
    Change,
    Launcher,
    class_of,
    dot,
    edited_scores,
    factor_of,
    form_of,
    hidden,
    mask_of,
    on_device,
    place_of,
    redistributed,
    row_state,
    seen_place,
)
from lvlm_attn.kernels.triton.rows import SEEN, Cut, RowsPlan
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, correct_tile

LEAST_REST = 0.01
MOST_FACTOR = 4.0


def loss_of(dtype: torch.dtype) -> float:
    """How much larger than the new output the old one times its factor may be.

    The rounding of a row is then at most sqrt(1 + loss^2) times that of one that is computed anew.
    """
    return 64.0 if dtype == torch.float32 else 2.0


@dataclass(frozen=True, eq=False)
class CorrectPlan:
    """How some rows are corrected: what all layers of a call share.

    Attributes:
        lists: launches that list the keys to read.
        correct: launches that correct.
        rows: finds log-sum-exps where the backend gave none.
        index: `(batch, rows)` int32, which query each row is, or None if the rows are the queries.
        order: `(batch, keys)` int32, the columns to read.
        listed: `(batch, 2)` int32, how many they are, and the class that is not among them.
        shared: the arguments that all layers share.
    """

    lists: Launcher
    correct: Launcher
    rows: RowsPlan
    index: Tensor | None
    order: Tensor
    listed: Tensor
    shared: tuple[Any, ...]

    @staticmethod
    def of(
        call: AttentionCall,
        packed: PackedVisibility,
        edits: PackedEdits,
        *,
        index: Tensor | None = None,
        tile: Tile | None = None,
    ) -> CorrectPlan:
        """Plans the rows of all calls of this shape.

        Args:
            call: one of the calls; tensors of any strides whose last is 1, `scaling` above 0.
            packed: the attention mask over groups, from `pack_visibility`.
            edits: what is moved, from `pack_edits`; no score changes.
            index: `(batch, rows)` int32, which query each row is; None if the rows are the queries.
            tile: tile sizes instead of the chip's.

        Raises:
            LvlmAttnError: if shapes do not belong together.
        """
        plain = PackedEdits()
        rows = RowsPlan.of(call, packed, plain, index=index, reads_values=False)
        query, kv_heads = call.query, call.key.shape[1]
        batch, heads, _, head_dim = query.shape
        shared = heads // kv_heads * rows.cut.rows
        tile = tile or correct_tile(chip_of(query), head_dim, query.element_size(), shared)
        form = form_of(call, packed, plain, tile)
        constants = redistributed, LEAST_REST, MOST_FACTOR, loss_of(query.dtype), form
        grid = triton.cdiv(shared, tile.block_m) * kv_heads, batch, 1
        return CorrectPlan(
            Launcher(_list_keys, (batch, 1, 1), (1024,), num_warps=4),
            Launcher(_correct, grid, constants, num_warps=tile.warps, num_stages=tile.stages),
            rows,
            index,
            torch.empty(batch, call.geometry.keys, dtype=torch.int32, device=query.device),
            torch.empty(batch, 2, dtype=torch.int32, device=query.device),
            (mask_of(packed), place_of(call, edits), Cut(*map(hidden, rows.cut))),
        )

    def run(
        self,
        call: AttentionCall,
        edits: PackedEdits,
        output: Tensor,
        *,
        log_sum_exp: Tensor | None = None,
        moved: Tensor | None = None,
    ) -> None:
        """Corrects the rows of a call.

        Args:
            call: the attention call, of the shape planned for.
            edits: what is moved.
            output: `(batch, queries, heads, head_dim)` of plain attention; changed rows are overwritten, all else
                stays bit-identical.
            log_sum_exp: `(batch, heads, queries)` fp32, the natural logarithm of the softmax's denominator; found
                here if None, in one pass over the keys.
            moved: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and the
                weight moved.
        """
        query, key, value = call.query, call.key, call.value
        mask, place, hidden_cut = self.shared
        is_packed = log_sum_exp is None
        if log_sum_exp is None:
            shape = query.shape[0], query.shape[1], self.rows.cut.rows, SEEN
            seen = torch.empty(shape, dtype=torch.float32, device=query.device)
            self.rows.run(call, PackedEdits(), None, seen=seen)
            log_sum_exp = seen[..., 0]
        strides = sum((tensor.stride()[:3] for tensor in (query, key, value, output)), ())
        tensors = query, key, value, output, log_sum_exp, self.index, self.order, self.listed
        with on_device(query):
            self.lists((edits.key_class, self.order, self.listed), Change(), (0,), mask, place)
            self.correct(
                (*tensors, edits.moved, edits.key_class, moved),
                Change(),
                strides,
                mask,
                place,
                hidden_cut,
                tuple(map(hidden, (*log_sum_exp.stride(), int(is_packed)))),
                edits.settings,
                call.scaling * LOG2E,
            )


@triton.jit
def _list_keys(key_class, order, listed, change, strides, mask, place, BLOCK: tl.constexpr):
    """Lists the columns of one sample that are no plain patches, or, where these are fewer, that are no text."""
    place = seen_place(place)
    sample = tl.program_id(0).to(tl.int64)
    patches, texts = 0, 0
    for first in range(0, place.written, BLOCK):
        column = first + tl.arange(0, BLOCK)
        is_column = column < place.written
        if mask.key_group is not None:
            is_column = is_column & (
                tl.load(mask.key_group + sample * place.keys + column, mask=is_column) >= 0
            )
        kind = class_of(key_class, column, is_column, sample, place)
        patches += tl.sum((is_column & (kind == 2)).to(tl.int32), 0)
        texts += tl.sum((is_column & (kind == 0)).to(tl.int32), 0)
    left_out = tl.where(patches >= texts, 2, 0)
    many = 0
    for first in range(0, place.written, BLOCK):
        column = first + tl.arange(0, BLOCK)
        is_column = column < place.written
        if mask.key_group is not None:
            is_column = is_column & (
                tl.load(mask.key_group + sample * place.keys + column, mask=is_column) >= 0
            )
        kind = class_of(key_class, column, is_column, sample, place)
        is_listed = is_column & (kind != left_out)
        number = is_listed.to(tl.int32)
        tl.store(order + sample * place.keys + many + tl.cumsum(number, 0) - 1, column, mask=is_listed)
        many += tl.sum(number, 0)
    tl.store(listed + sample * 2, many)
    tl.store(listed + sample * 2 + 1, left_out)


@triton.jit
def _read_keys(
    first,
    many,
    is_listed,
    order,
    key,
    stride,
    key_class,
    q,
    at,
    state,
    sample,
    spec,
    F: tl.constexpr,
):
    """Some keys from `first` on, of a list or of all: columns, whether there are such, classes, and scores."""
    place_in_list = first + tl.arange(0, F.block_n)
    is_column = place_in_list < many
    in_list = tl.where(is_listed, many, 0)
    column = tl.load(order + place_in_list, mask=place_in_list < in_list, other=0)
    column = tl.where(is_listed, column, place_in_list)
    kind = class_of(key_class, column, is_column, sample, spec[2])[None, :]
    width = tl.arange(0, F.block_d)
    k_at = key + column.to(tl.int64)[None, :] * stride + width[:, None]
    k = tl.load(k_at, mask=(width < F.head_dim)[:, None] & is_column[None, :], other=0.0)
    scores = edited_scores(q, k, spec[2].start + at, state, column, is_column, sample, spec, F)
    return column, is_column, kind, scores


# Long because masses, factors and outputs of a tile stay in registers.
@triton.jit(do_not_specialize=["scale"])
def _correct(
    query,
    key,
    value,
    output,
    log_sum_exp,
    index,
    order,
    listed,
    touched,
    key_class,
    moved_counts,
    change,
    strides,
    mask,
    place,
    cut,
    near,
    settings,
    scale,
    RULE: tl.constexpr,
    LEAST_REST: tl.constexpr,
    MOST_FACTOR: tl.constexpr,
    LOSS: tl.constexpr,
    F: tl.constexpr,
):
    """Some rows of one key head; line r is row r % rows of head r // rows.

    `near` are the strides of the log-sum-exp, and whether it is of the rows instead of the queries.
    """
    place = seen_place(place)
    rows, kv_heads, group = cut[0] >> 5, cut[3] >> 5, cut[4] >> 5
    spec = mask, change, place, scale
    sample = tl.program_id(1).to(tl.int64)
    kv_head = (tl.program_id(0) % kv_heads).to(tl.int64)
    line = (tl.program_id(0) // kv_heads) * F.block_m + tl.arange(0, F.block_m)
    is_row = line < group * rows
    head = kv_head * group + tl.minimum(line // rows, group - 1)
    line = line % rows
    at = line
    if index is not None:
        at = tl.load(index + sample * rows + line)
    may_move = is_row & (tl.load(touched + sample * place.queries + at, mask=is_row, other=0) != 0)
    width = tl.arange(0, F.block_d)
    is_number = may_move[:, None] & (width < F.head_dim)[None, :]
    q_at = query + sample * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]
    q = tl.load(q_at[:, None] + width[None, :], mask=is_number, other=0.0)
    state = row_state(at, head, sample, is_row, kv_heads * group, spec, F)
    key += sample * strides[3] + kv_head * strides[4]
    value += sample * strides[6] + kv_head * strides[7]
    out_at = output + sample * strides[9] + at.to(tl.int64) * strides[10] + head * strides[11]
    near_at = tl.where((near[3] >> 5) != 0, line, at).to(tl.int64) * (near[2] >> 5)
    near_at += log_sum_exp + sample * (near[0] >> 5) + head * (near[1] >> 5)
    known = tl.load(near_at, mask=may_move, other=0.0) * 1.4426950408889634
    many, left_out = tl.load(listed + sample * 2), tl.load(listed + sample * 2 + 1)
    order += sample * place.keys

    mass = tl.zeros([F.block_m], tl.float32)
    is_moved = mass != 0.0
    # First with the keys that are listed; then, if that is not exact enough, with all of them.
    turn = tl.where(tl.max(may_move.to(tl.int32), 0) > 0, 0, 2)
    while turn < 2:
        many = tl.where(turn == 0, many, place.written)
        top = tl.full([F.block_m], float("-inf"), tl.float32)
        text = tl.zeros([F.block_m], tl.float32)
        text_sink = tl.zeros([F.block_m], tl.float32)
        patch = tl.zeros([F.block_m], tl.float32)
        patch_sink = tl.zeros([F.block_m], tl.float32)
        for first in range(0, many, F.block_n):
            _, _, kind, scores = _read_keys(
                first, many, turn == 0, order, key, strides[5], key_class, q, at, state, sample, spec, F
            )
            above = tl.maximum(top, tl.max(scores, 1))
            base = tl.where(above == float("-inf"), 0.0, above)
            weights = tl.math.exp2(scores - base[:, None])
            fade = tl.math.exp2(top - base)
            text = text * fade + tl.sum(tl.where(kind == 0, weights, 0.0), 1)
            text_sink = text_sink * fade + tl.sum(tl.where(kind == 1, weights, 0.0), 1)
            patch = patch * fade + tl.sum(tl.where(kind == 2, weights, 0.0), 1)
            patch_sink = patch_sink * fade + tl.sum(tl.where(kind == 3, weights, 0.0), 1)
            top = above
        base = tl.where(top == float("-inf"), 0.0, top)
        total = text + text_sink + patch + patch_sink
        own = base + tl.math.log2(tl.where(total > 0, total, 1.0))
        denominator = tl.where(turn == 0, known, own)
        # A row without any key has no weights; infinity would be NaN.
        denominator = tl.where(denominator == float("-inf"), 0.0, denominator)
        share = tl.math.exp2(base - denominator)
        text, text_sink, patch, patch_sink = (
            text * share,
            text_sink * share,
            patch * share,
            patch_sink * share,
        )
        rest = tl.maximum(1.0 - total * share, 0.0)
        is_rest_text, is_rest_patch = (turn == 0) & (left_out == 0), (turn == 0) & (left_out == 2)
        _, _, _, _, might, _ = RULE(
            tl.where(is_rest_text, tl.maximum(rest, LEAST_REST), text),
            text_sink,
            tl.where(is_rest_patch, tl.maximum(rest, LEAST_REST), patch),
            patch_sink,
            settings,
        )
        of_text, of_text_sink, of_patch, of_patch_sink, is_moved, mass = RULE(
            tl.where(is_rest_text, rest, text),
            text_sink,
            tl.where(is_rest_patch, rest, patch),
            patch_sink,
            settings,
        )
        is_moved = is_moved & may_move
        whole = tl.where(is_rest_text, of_text, tl.where(is_rest_patch, of_patch, 0.0))
        acc = tl.zeros([F.block_m, F.block_d], tl.float32)
        for first in range(0, many, F.block_n):
            column, is_column, kind, scores = _read_keys(
                first, many, turn == 0, order, key, strides[5], key_class, q, at, state, sample, spec, F
            )
            factor = factor_of(
                kind, of_text[:, None], of_text_sink[:, None], of_patch[:, None], of_patch_sink[:, None]
            )
            weights = tl.math.exp2(scores - base[:, None]) * (factor - whole[:, None])
            v_at = value + column.to(tl.int64)[:, None] * strides[8] + width[None, :]
            v = tl.load(v_at, mask=is_column[:, None] & (width < F.head_dim)[None, :], other=0.0)
            acc = dot(weights.to(v.dtype), v, acc, F.precision)
        old = tl.load(out_at[:, None] + width[None, :], mask=is_number, other=0.0).to(tl.float32)
        old = old * whole[:, None]
        new = old + acc * share[:, None]
        is_near = (rest < LEAST_REST) | (tl.abs(whole) > MOST_FACTOR)
        is_lost = is_moved & (tl.sum(old * old, 1) > LOSS * LOSS * tl.sum(new * new, 1))
        is_unsafe = (turn == 0) & ((might & may_move & is_near) | is_lost)
        turn = tl.where(tl.max(is_unsafe.to(tl.int32), 0) > 0, 1, 2)
        is_written = is_number & is_moved[:, None] & (width < tl.where(turn == 2, F.head_dim, 0))[None, :]
        tl.store(out_at[:, None] + width[None, :], new.to(output.dtype.element_ty), mask=is_written)
    if moved_counts is not None:
        tl.atomic_add(moved_counts, tl.sum(is_moved.to(tl.float64), 0))
        tl.atomic_add(moved_counts + 1, tl.sum(may_move.to(tl.float64), 0))
        tl.atomic_add(moved_counts + 2, tl.sum(tl.where(is_moved, mass, 0.0).to(tl.float64), 0))
