"""Attention of some rows split over the keys, with all edits: decoding, rows of amplified scores, log-sum-exps.

Decoding is bound by reading keys and values, so they are read once: all query heads of a key head share a tile,
and a redistribution needs no second pass. Its factors are known only when the whole row has been seen, so every
row stands four times in the tile, once per key class, and each copy sees the keys of its class alone. Four copies
are four ordinary online softmaxes: there is one product with the values and one accumulator of at most 64 rows,
which fits the registers, and since the tensor cores work on 16 rows at least, the copies of up to four rows cost
nothing. The second launch joins the splits: it adds up masses, decides the factors, and weighs the copies.

Splitting decode over keys: Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference" (2023).
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
    Form,
    Launcher,
    Mask,
    Place,
    check_call,
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
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, choose_splits, processors_of, split_tile

CLASSES = 4
SEEN = 3
"""Numbers kept of a row: its log-sum-exp, and the factors of sinks and of plain patches."""


@dataclass(frozen=True, eq=False)
class RowsPlan:
    """How some rows are computed: what all layers of a call share, so that a layer only launches.

    Attributes:
        splits: launches of the parts.
        join: launches that join them.
        index: `(batch, rows)` int32, which query each row is, or None if the rows are the queries.
        rows: how many there are.
        parts: `(batch, heads, rows, entries, head_dim)`, what the parts give; None if only keys are read.
        tops: `(2, batch, heads, rows, entries)`, their maxima and denominators.
        mask: the mask over groups.
        place: the numbers of the call.
    """

    splits: Launcher
    join: Launcher
    index: Tensor | None
    rows: int
    parts: Tensor | None
    tops: Tensor
    mask: Mask
    place: Place

    @staticmethod
    def of(
        call: AttentionCall,
        packed: PackedVisibility,
        edits: PackedEdits,
        *,
        index: Tensor | None = None,
        is_every: bool = True,
        reads_values: bool = True,
        splits: int | None = None,
        tile: Tile | None = None,
    ) -> RowsPlan:
        """Plans the rows of all calls of this shape with edits of this form.

        Args:
            call: one of the calls; tensors of any strides whose last is 1.
            packed: the attention mask over groups, from `pack_visibility`.
            edits: what is done to scores and weights, from `pack_edits`.
            index: `(batch, rows)` int32, which query each row is; None if the rows are the queries.
            is_every: whether rows that no edit changes are written too.
            reads_values: whether outputs are asked for.
            splits: parts of the keys, chosen by the device if None.
            tile: tile sizes instead of the chip's.

        Raises:
            LvlmAttnError: if shapes do not belong together.
        """
        check_call(call)
        query, kv_heads, geometry = call.query, call.key.shape[1], call.geometry
        batch, heads, queries, head_dim = query.shape
        slots = CLASSES if edits.key_class is not None else 1
        rows = queries if index is None else index.shape[1]
        shared = heads // kv_heads * rows
        tile = tile or split_tile(chip_of(query), head_dim, query.element_size(), shared * slots, slots)
        if slots > 1 and packed.shape.lines > 1:
            tile = tile._replace(block_n=min(tile.block_n, 32))  # reaches need registers of their own
        tiles = triton.cdiv(shared, tile.block_m // slots)
        written = geometry.written
        if splits is None:
            columns = min(written, (geometry.window or written) + queries)
            splits = choose_splits(batch * kv_heads * tiles, columns, processors_of(query), tile.block_n)
        length = triton.cdiv(triton.cdiv(max(written, 1), splits), tile.block_n) * tile.block_n
        entries = splits * slots
        form = Form.of(call, packed, tile, signed=edits.signed)
        join = is_every, slots, form, max(triton.next_power_of_2(entries), 16), 16
        grid = tiles * kv_heads, splits, batch
        place = Place.of(geometry, edits, heads=(heads, kv_heads), rows=rows, splits=splits, length=length)
        fresh: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
        return RowsPlan(
            Launcher(_split_keys, grid, (slots, form), num_warps=tile.warps, num_stages=tile.stages),
            Launcher(_join_splits, (rows, heads, batch), join, num_warps=4 if head_dim > 64 else 2),
            index,
            rows,
            torch.empty(batch, heads, rows, entries, head_dim, **fresh) if reads_values else None,
            torch.empty(2, batch, heads, rows, entries, **fresh),
            Mask.of(packed),
            place,
        )

    def run(
        self,
        call: AttentionCall,
        edits: PackedEdits,
        output: Tensor | None,
        *,
        moved: Tensor | None = None,
        amplified: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> None:
        """Computes the rows of a call.

        Args:
            call: the attention call, of the shape planned for.
            edits: what is done, of the form planned for.
            output: `(batch, queries, heads, head_dim)`, written in place; 0 in rows without any key; None if no values
                are read.
            moved: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and the
                weight moved.
            amplified: the same of rows whose scores are changed, which move no weight.
            seen: `(batch, heads, rows, SEEN)` fp32, what was seen; its first number is the natural logarithm of the
                softmax's denominator, minus infinity in rows without any key.
        """
        query, key, value = call.query, call.key, call.value if output is not None else None
        change = Change.of(edits)
        with on_device(query):
            self.splits(
                (query, key, value, self.index, self.parts, self.tops, edits.key_class),
                change,
                strides_of(query, key, value),
                self.mask,
                self.place,
                call.scaling * LOG2E,
            )
            self.join(
                (output, self.index, self.parts, self.tops, edits.moved, moved, amplified, seen),
                change,
                strides_of(output),
                self.place,
                edits.settings,
            )


def attend_rows(
    call: AttentionCall,
    output: Tensor | None = None,
    *,
    packed: PackedVisibility,
    edits: PackedEdits,
    moved: Tensor | None = None,
    amplified: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """Plans and runs once, for what is not asked at every layer; see `RowsPlan.run`, and `RowsPlan.of` for `options`.

    Returns:
        `(batch, heads, rows, SEEN)`, what was seen in the rows.
    """
    plan = RowsPlan.of(call, packed, edits, reads_values=output is not None, **options)
    shape = *call.query.shape[:2], plan.rows, SEEN
    seen = torch.empty(shape, dtype=torch.float32, device=call.query.device)
    plan.run(call, edits, output, moved=moved, amplified=amplified, seen=seen)
    return seen


# Long because maximum, denominator and output stay in the registers of one loop.
@triton.jit(do_not_specialize=["scale"])
def _split_keys(
    query,
    key,
    value,
    index,
    parts,
    tops,
    key_class,
    change,
    strides,
    mask,
    place,
    scale,
    SLOTS: tl.constexpr,
    F: tl.constexpr,
):
    """One part of the keys for some rows of one key head."""
    split = tl.program_id(1)
    spec = Spec(mask, change, seen_place(place), scale, tl.program_id(2).to(tl.int64))
    place, sample = spec.place, spec.sample
    kv_head, head, line, at, is_row = lines_of(tl.program_id(0), index, spec, SLOTS, F)
    slot = tl.arange(0, F.block_m) % SLOTS
    q = loaded_queries(query, strides, head, at, is_row, spec, F)
    state = row_state(at, head, is_row, spec, F)
    key += sample * strides[3] + kv_head * strides[4]
    if value is not None:
        value += sample * strides[6] + kv_head * strides[7]

    # Columns that no row of the tile attends to are left out.
    begin = split * place.length
    end = tl.minimum(begin + place.length, place.written)
    if place.window is not None:
        first = tl.min(tl.where(is_row, state.position, 2147483647), 0) - place.window + 1 - place.first_key
        begin = tl.maximum(begin, first // F.block_n * F.block_n)
    if not F.shape.later:
        end = tl.minimum(end, tl.max(tl.where(is_row, state.position, -1), 0) + 1 - place.first_key)
    acc = tl.zeros([F.block_m, F.block_d], tl.float32)
    top = tl.full([F.block_m], float("-inf"), tl.float32)
    total = tl.zeros([F.block_m], tl.float32)
    for first in range(begin, end, F.block_n):
        column = first + tl.arange(0, F.block_n)
        is_column = column < end
        k = loaded_keys(key, strides[5], column, is_column, F)
        if SLOTS > 1:
            kind = class_of(key_class, column, is_column, spec)
        scores = edited_scores(q, k, state, column, is_column, spec, F)
        if SLOTS > 1:
            scores = tl.where(slot[:, None] == kind[None, :], scores, float("-inf"))
        top, weights, fade = weighed(scores, top)
        total = total * fade + tl.sum(weights, 1)
        if value is not None:
            v = loaded_values(value, strides[8], column, is_column, F)
            acc = dot(weights.to(v.dtype), v, acc * fade[:, None], F.precision)

    heads, entries = place.kv_heads * place.group, place.splits * SLOTS
    entry = ((sample * heads + head) * place.rows + line) * entries + split * SLOTS + slot
    behind = tl.num_programs(2).to(tl.int64) * heads * place.rows * entries
    tl.store(tops + entry, top, mask=is_row)
    tl.store(tops + behind + entry, total, mask=is_row)
    if value is not None:
        width = tl.arange(0, F.block_d)
        part_at = parts + entry[:, None] * F.head_dim + width[None, :]
        tl.store(part_at, acc, mask=is_row[:, None] & (width < F.head_dim)[None, :])


# Long because all that is known of a row is decided and written in one place.
@triton.jit
def _join_splits(
    output,
    index,
    parts,
    tops,
    moved,
    moved_counts,
    amplified_counts,
    seen,
    change,
    strides,
    place,
    settings,
    EVERY: tl.constexpr,
    SLOTS: tl.constexpr,
    F: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Joins the parts of one row: masses, what a redistribution makes of them, and the output."""
    place = seen_place(place)
    line, head = tl.program_id(0), tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    at = line
    if index is not None:
        at = tl.load(index + sample * place.rows + line)
    place_of_row = sample * place.queries + at
    line = (sample * heads + head) * place.rows + line
    entries = place.splits * SLOTS
    behind = tl.num_programs(2).to(tl.int64) * heads * place.rows * entries
    tops += line * entries
    entry = tl.arange(0, ENTRIES)
    each = tl.load(tops + entry, mask=entry < entries, other=float("-inf"))
    top = tl.max(each, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    sums = tl.load(tops + behind + entry, mask=entry < entries, other=0.0) * tl.math.exp2(each - base)
    total = tl.sum(sums, 0)
    divisor = tl.where(total > 0, total, 1.0)

    is_changed, keep, grow = total < 0.0, 1.0, 1.0
    if change.amplified is not None:
        may_amplify = tl.load(change.amplified + place_of_row) != 0
        is_changed = may_amplify
        if change.heads is not None:
            is_changed = is_changed & (tl.load(change.heads + sample * heads + head) != 0.0)
        if amplified_counts is not None:
            tl.atomic_add(amplified_counts, is_changed.to(tl.float64))
            tl.atomic_add(amplified_counts + 1, may_amplify.to(tl.float64))
    if SLOTS > 1:
        kind = entry % SLOTS
        may_move = tl.load(moved + place_of_row) != 0
        keep, grow, is_moved, mass = redistributed(
            tl.sum(tl.where(kind == 1, sums, 0.0), 0) / divisor,
            tl.sum(tl.where(kind == 2, sums, 0.0), 0) / divisor,
            tl.sum(tl.where(kind == 3, sums, 0.0), 0) / divisor,
            may_move,
            settings,
        )
        is_changed = is_changed | is_moved
        if moved_counts is not None:
            tl.atomic_add(moved_counts, is_moved.to(tl.float64))
            tl.atomic_add(moved_counts + 1, may_move.to(tl.float64))
            tl.atomic_add(moved_counts + 2, mass.to(tl.float64))
    if seen is not None:
        # Natural logarithm: 0.693... is log 2.
        natural = (top + tl.math.log2(divisor)) * 0.6931471805599453
        tl.store(seen + line * 3, tl.where(total > 0, natural, float("-inf")))
        tl.store(seen + line * 3 + 1, keep)
        tl.store(seen + line * 3 + 2, grow)

    if output is not None:
        width = tl.arange(0, F.block_d)
        is_width = width < F.head_dim
        acc = tl.zeros([F.block_d], tl.float32)
        for first in range(0, entries, CHUNK):
            near = first + tl.arange(0, CHUNK)
            is_near = near < entries
            factor = tl.math.exp2(tl.load(tops + near, mask=is_near, other=float("-inf")) - base) / divisor
            if SLOTS > 1:
                factor *= factor_of(near % SLOTS, keep, grow)
            part_at = parts + (line * entries + near)[:, None] * F.head_dim + width[None, :]
            part = tl.load(part_at, mask=is_near[:, None] & is_width[None, :], other=0.0)
            acc += tl.sum(part * factor[:, None], 0)
        if not EVERY:
            is_width = width < tl.where(is_changed, F.head_dim, 0)
        out_at = output + sample * strides[0] + at.to(tl.int64) * strides[1] + head * strides[2] + width
        tl.store(out_at, acc.to(output.dtype.element_ty), mask=is_width)
