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

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.common import (
    Change,
    Form,
    Launcher,
    Place,
    dot,
    on_device,
    seen_place,
    strides_of,
)
from lvlm_attn.kernels.triton.device import (
    Spec,
    class_of,
    edited_scores,
    factor_of,
    lines_of,
    loaded_keys,
    loaded_queries,
    loaded_values,
    redistributed,
    row_state,
    weighed,
)
from lvlm_attn.kernels.triton.rows import SEEN, RowsPlan
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
        order: `(batch, keys)` int32, the columns to read.
        listed: `(batch, 2)` int32, how many they are, and the class that is not among them.
        place: the numbers of the call.
    """

    lists: Launcher
    correct: Launcher
    rows: RowsPlan
    order: Tensor
    listed: Tensor
    place: Place

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
        rows = RowsPlan.of(call, packed, PackedEdits(), index=index, reads_values=False)
        query, kv_heads = call.query, call.key.shape[1]
        batch, heads, _, head_dim = query.shape
        shared = heads // kv_heads * rows.rows
        tile = tile or correct_tile(chip_of(query), head_dim, query.element_size(), shared)
        constants = LEAST_REST, MOST_FACTOR, loss_of(query.dtype), SEEN, Form.of(call, packed, tile)
        grid = triton.cdiv(shared, tile.block_m) * kv_heads, batch, 1
        return CorrectPlan(
            Launcher(_list_keys, (batch, 1, 1), (1024,), num_warps=4),
            Launcher(_correct, grid, constants, num_warps=tile.warps, num_stages=tile.stages),
            rows,
            torch.empty(batch, call.geometry.keys, dtype=torch.int32, device=query.device),
            torch.empty(batch, 2, dtype=torch.int32, device=query.device),
            Place.of(call.geometry, edits, heads=(heads, kv_heads), rows=rows.rows),
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
        tensors = call.query, call.key, call.value, output
        seen = None
        if log_sum_exp is None:
            shape = *call.query.shape[:2], self.rows.rows, SEEN
            seen = torch.empty(shape, dtype=torch.float32, device=output.device)
            self.rows.run(call, PackedEdits(), None, seen=seen)
        else:
            log_sum_exp = log_sum_exp.contiguous()
        lists = self.order, self.listed, edits.key_class
        with on_device(output):
            self.lists(lists, Change(), (0,), self.rows.mask, self.place)
            self.correct(
                (*tensors, log_sum_exp, seen, self.rows.index, *lists, edits.moved, moved),
                Change(),
                strides_of(*tensors),
                self.rows.mask,
                self.place,
                edits.settings,
                call.scaling * LOG2E,
            )


@triton.jit
def _list_keys(order, listed, key_class, change, strides, mask, place, BLOCK: tl.constexpr):
    """Lists the columns of one sample that are no plain patches, or, where these are fewer, that are no text."""
    place = seen_place(place)
    spec = Spec(mask, change, place, 1.0, tl.program_id(0).to(tl.int64))
    patches, texts, many = 0, 0, 0
    for first in range(0, place.written, BLOCK):
        kind, _ = _kinds(first, key_class, spec, BLOCK)
        patches += tl.sum((kind == 2).to(tl.int32), 0)
        texts += tl.sum((kind == 0).to(tl.int32), 0)
    left_out = tl.where(patches >= texts, 2, 0)
    for first in range(0, place.written, BLOCK):
        kind, column = _kinds(first, key_class, spec, BLOCK)
        is_listed = (kind >= 0) & (kind != left_out)
        number = is_listed.to(tl.int32)
        at = order + spec.sample * place.keys + many + tl.cumsum(number, 0) - 1
        tl.store(at, column, mask=is_listed)
        many += tl.sum(number, 0)
    tl.store(listed + spec.sample * 2, many)
    tl.store(listed + spec.sample * 2 + 1, left_out)


@triton.jit
def _kinds(first, key_class, spec, BLOCK: tl.constexpr):
    """The class of some columns, -1 where none holds a key that is attended to, and the columns."""
    column = first + tl.arange(0, BLOCK)
    is_column = column < spec.place.written
    if spec.mask.key_group is not None:
        group = tl.load(
            spec.mask.key_group + spec.sample * spec.place.keys + column, mask=is_column, other=-1
        )
        is_column = is_column & (group >= 0)
    return tl.where(is_column, class_of(key_class, column, is_column, spec), -1), column


@triton.jit
def _read_keys(first, many, is_listed, keys, q, state, spec, F: tl.constexpr):
    """Some keys from `first` on, of a list or of all: columns, whether there are such, classes, and scores.

    `keys` are the list, the keys of a head, their stride, and the classes.
    """
    order, key, stride, key_class = keys
    place_in_list = first + tl.arange(0, F.block_n)
    is_column = place_in_list < many
    in_list = tl.where(is_listed, many, 0)
    column = tl.load(order + place_in_list, mask=place_in_list < in_list, other=0)
    column = tl.where(is_listed, column, place_in_list)
    kind = class_of(key_class, column, is_column, spec)[None, :]
    k = loaded_keys(key, stride, column, is_column, F)
    return column, is_column, kind, edited_scores(q, k, state, column, is_column, spec, F)


# Long because masses, factors and outputs of a tile stay in registers.
@triton.jit(do_not_specialize=["scale"])
def _correct(
    query,
    key,
    value,
    output,
    log_sum_exp,
    seen,
    index,
    order,
    listed,
    key_class,
    touched,
    moved_counts,
    change,
    strides,
    mask,
    place,
    settings,
    scale,
    LEAST_REST: tl.constexpr,
    MOST_FACTOR: tl.constexpr,
    LOSS: tl.constexpr,
    SEEN: tl.constexpr,
    F: tl.constexpr,
):
    """Some rows of one key head; the log-sum-exp is that of all queries, or stands in what was `seen` of the rows."""
    spec = Spec(mask, change, seen_place(place), scale, tl.program_id(1).to(tl.int64))
    place, sample = spec.place, spec.sample
    kv_head, head, line, at, is_row = lines_of(tl.program_id(0), index, spec, 1, F)
    may_move = is_row & (tl.load(touched + sample * place.queries + at, mask=is_row, other=0) != 0)
    q = loaded_queries(query, strides, head, at, may_move, spec, F)
    state = row_state(at, head, is_row, spec, F)
    keys = (
        order + sample * place.keys,
        key + sample * strides[3] + kv_head * strides[4],
        strides[5],
        key_class,
    )
    value += sample * strides[6] + kv_head * strides[7]
    width = tl.arange(0, F.block_d)
    is_number = may_move[:, None] & (width < F.head_dim)[None, :]
    out_at = output + sample * strides[9] + at.to(tl.int64) * strides[10] + head * strides[11]
    plane = sample * place.kv_heads * place.group + head
    if seen is not None:
        known_at = seen + (plane * place.rows + line) * SEEN
    else:
        known_at = log_sum_exp + plane * place.queries + at
    known = tl.load(known_at, mask=may_move, other=0.0) * 1.4426950408889634
    many, left_out = tl.load(listed + sample * 2), tl.load(listed + sample * 2 + 1)

    mass = tl.zeros([F.block_m], tl.float32)
    is_moved = mass != 0.0
    # First with the keys that are listed; then, if that is not exact enough, with all of them.
    turn = tl.where(tl.max(may_move.to(tl.int32), 0) > 0, 0, 2)
    while turn < 2:
        many = tl.where(turn == 0, many, place.written)
        top = tl.full([F.block_m], float("-inf"), tl.float32)
        total = tl.zeros([F.block_m], tl.float32)
        text_sink = tl.zeros([F.block_m], tl.float32)
        patch = tl.zeros([F.block_m], tl.float32)
        patch_sink = tl.zeros([F.block_m], tl.float32)
        for first in range(0, many, F.block_n):
            _, _, kind, scores = _read_keys(first, many, turn == 0, keys, q, state, spec, F)
            top, weights, fade = weighed(scores, top)
            total = total * fade + tl.sum(weights, 1)
            text_sink = text_sink * fade + tl.sum(tl.where(kind == 1, weights, 0.0), 1)
            patch = patch * fade + tl.sum(tl.where(kind == 2, weights, 0.0), 1)
            patch_sink = patch_sink * fade + tl.sum(tl.where(kind == 3, weights, 0.0), 1)
        base = tl.where(top == float("-inf"), 0.0, top)
        own = base + tl.math.log2(tl.where(total > 0, total, 1.0))
        denominator = tl.where(turn == 0, known, own)
        # A row without any key has no weights; infinity would be NaN.
        denominator = tl.where(denominator == float("-inf"), 0.0, denominator)
        share = tl.math.exp2(base - denominator)
        text_sink, patch, patch_sink = text_sink * share, patch * share, patch_sink * share
        rest = tl.maximum(1.0 - total * share, 0.0)
        is_rest_patch = (turn == 0) & (left_out == 2)
        most = tl.where(is_rest_patch, tl.maximum(rest, LEAST_REST), patch)
        _, _, might, _ = redistributed(text_sink, most, patch_sink, may_move, settings)
        patch = tl.where(is_rest_patch, rest, patch)
        keep, grow, is_moved, mass = redistributed(text_sink, patch, patch_sink, may_move, settings)
        # The factor of the keys that are not read.
        whole = tl.where(turn == 0, tl.where(left_out == 2, grow, 1.0), 0.0)
        acc = tl.zeros([F.block_m, F.block_d], tl.float32)
        for first in range(0, many, F.block_n):
            column, is_column, kind, scores = _read_keys(first, many, turn == 0, keys, q, state, spec, F)
            factor = factor_of(kind, keep[:, None], grow[:, None])
            weights = tl.math.exp2(scores - base[:, None]) * (factor - whole[:, None])
            v = loaded_values(value, strides[8], column, is_column, F)
            acc = dot(weights.to(v.dtype), v, acc, F.precision)
        old = tl.load(out_at[:, None] + width[None, :], mask=is_number, other=0.0).to(tl.float32)
        old = old * whole[:, None]
        new = old + acc * share[:, None]
        is_near = (rest < LEAST_REST) | (tl.abs(whole) > MOST_FACTOR)
        is_lost = is_moved & (tl.sum(old * old, 1) > LOSS * LOSS * tl.sum(new * new, 1))
        is_unsafe = (turn == 0) & ((might & is_near) | is_lost)
        turn = tl.where(tl.max(is_unsafe.to(tl.int32), 0) > 0, 1, 2)
        is_written = is_number & is_moved[:, None] & (width < tl.where(turn == 2, F.head_dim, 0))[None, :]
        tl.store(out_at[:, None] + width[None, :], new.to(output.dtype.element_ty), mask=is_written)
    if moved_counts is not None:
        tl.atomic_add(moved_counts, tl.sum(is_moved.to(tl.float64), 0))
        tl.atomic_add(moved_counts + 1, tl.sum(may_move.to(tl.float64), 0))
        tl.atomic_add(moved_counts + 2, tl.sum(mass.to(tl.float64), 0))
