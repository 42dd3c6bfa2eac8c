"""Attention of some rows split over the keys, with all edits: decoding, rows of amplified scores, log-sum-exps.

Decoding is bound by reading keys and values, so they are read once: all query heads of a key head share a tile,
and a redistribution needs no second pass. Its factors are known only when the whole row has been seen, so every
row stands four times in the tile, once per key class, and each copy sees the keys of its class alone. Four copies
are four ordinary online softmaxes: there is one product with the values and one accumulator of at most 64 rows,
which fits the registers, and since the tensor cores work on 16 rows at least, the copies of up to four rows cost
nothing. The second launch joins the splits: it adds up masses, asks the rule for the factors, and weighs the copies.

Splitting decode over keys: Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference" (2023).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall, Inputs
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.common import (
    Launch,
    Launcher,
    Mask,
    change_of,
    check_call,
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
from lvlm_attn.kernels.triton.tiles import (
    Tile,
    chip_of,
    choose_splits,
    processors_of,
    split_tile,
)

CLASSES = 4
SEEN = 12
"""Numbers kept of a row: log-sum-exp, mass of each class, factor of each class, is changed, mass moved, amplified."""


class Cut(NamedTuple):
    """How rows and keys are cut up; hidden as in `Place` where a kernel takes them.

    Attributes:
        rows: rows of a head.
        splits: parts of the keys.
        length: keys in a part.
        kv_heads: heads of keys.
        group: query heads of each.
    """

    rows: int
    splits: int
    length: int
    kv_heads: int
    group: int


@dataclass(frozen=True, eq=False)
class RowsPlan:
    """How some rows are computed: what all layers of a call share, so that a layer only launches.

    Attributes:
        call: a call of the shape this is for.
        splits: launches of the parts.
        join: launches that join them.
        index: `(batch, rows)` int32, which query each row is, or None if the rows are the queries.
        parts: `(batch, heads, rows, entries, head_dim)`, what the parts give; None if only keys are read.
        tops: `(2, batch, heads, rows, entries)`, their maxima and denominators.
        shared: the arguments of both that all layers share.
        cut: how rows and keys are cut up.
        block: keys of a tile.
    """

    splits: Launcher
    join: Launcher
    index: Tensor | None
    parts: Tensor | None
    tops: Tensor
    shared: tuple[Any, ...]
    cut: Cut
    block: int

    # Long because all that layers share is decided here.
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
        query, kv_heads = call.query, call.key.shape[1]
        batch, heads, queries, head_dim = query.shape
        slots = CLASSES if edits.key_class is not None else 1
        rows = queries if index is None else index.shape[1]
        shared = heads // kv_heads * rows
        tile = tile or split_tile(chip_of(query), head_dim, query.element_size(), shared * slots, slots)
        if slots > 1 and packed.shape.lines > 1:
            tile = tile._replace(block_n=min(tile.block_n, 32))  # reaches need registers of their own
        tiles = triton.cdiv(shared, tile.block_m // slots)
        splits, length = _parts(call, batch * kv_heads * tiles, tile.block_n, splits)
        cut = Cut(rows, splits, length, kv_heads, heads // kv_heads)
        fresh: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
        entries = splits * slots
        form = form_of(call, packed, edits, tile)
        join = redistributed, is_every, slots, form, max(triton.next_power_of_2(entries), 16), 16
        grid = tiles * kv_heads, splits, batch
        return RowsPlan(
            Launcher(_split_keys, grid, (slots, form), num_warps=tile.warps, num_stages=tile.stages),
            Launcher(_join_splits, (rows, heads, batch), join, num_warps=4 if head_dim > 64 else 2),
            index,
            torch.empty(batch, heads, rows, entries, head_dim, **fresh) if reads_values else None,
            torch.empty(2, batch, heads, rows, entries, **fresh),
            (mask_of(packed), place_of(call, edits), Cut(*map(hidden, cut))),
            cut,
            tile.block_n,
        )

    def for_later(self, call: AttentionCall, packed: PackedVisibility, edits: PackedEdits) -> RowsPlan | None:
        """This plan, its room included, for a call of the same form that has other keys; None if it needs another.

        Args:
            call: the call.
            packed: see `of`.
            edits: see there.
        """
        tiles, _, batch = self.splits.grid
        before: Mask = self.shared[0]
        if (packed.key_group is None) != (before.key_group is None):
            return None
        if _parts(call, tiles * batch, self.block, None) != (self.cut.splits, self.cut.length):
            return None
        return replace(self, shared=(mask_of(packed), place_of(call, edits), self.shared[2]))

    def run(
        self,
        call: AttentionCall | Inputs,
        edits: PackedEdits,
        output: Tensor | None,
        *,
        moved: Tensor | None = None,
        amplified: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> tuple[Launch | None, Launch | None]:
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

        Returns:
            What both launches called; see `Launcher`.
        """
        query, key = call.query, call.key
        value = call.value if output is not None else None
        change, strides = change_of(edits), (*query.stride()[:3], *key.stride()[:3])
        mask, place, cut = self.shared
        with on_device(query):
            split = self.splits(
                (query, key, value, self.index, self.parts, self.tops, edits.key_class),
                change,
                strides + (call.value.stride()[:3] if value is not None else (0, 0, 0)),
                mask,
                place,
                cut,
                call.scaling * LOG2E,
            )
            join = self.join(
                (output, self.index, self.parts, self.tops, edits.moved, moved, amplified, seen),
                change,
                output.stride()[:3] if output is not None else (0, 0, 0),
                place,
                cut,
                edits.settings,
            )
        return split, join


def _parts(call: AttentionCall, programs: int, block: int, splits: int | None) -> tuple[int, int]:
    """How many parts the keys of a call are cut into, and keys in each: whole blocks."""
    geometry = call.geometry
    written = min(geometry.keys, geometry.length - geometry.first_key)
    if splits is None:
        columns = min(written, (geometry.window or written) + geometry.queries)
        splits = choose_splits(programs, columns, processors_of(call.query), block)
    return splits, triton.cdiv(triton.cdiv(max(written, 1), splits), block) * block


def attend_rows(
    call: AttentionCall,
    output: Tensor | None = None,
    *,
    packed: PackedVisibility,
    edits: PackedEdits | None = None,
    **options: Any,
) -> Tensor:
    """Plans and runs once: for what is not asked at every layer.

    Args:
        call: the attention call.
        output: see `RowsPlan.run`; None to read keys alone.
        packed: the attention mask over groups.
        edits: what is done to scores and weights; None for nothing.
        **options: see `RowsPlan.of` and `RowsPlan.run`.

    Returns:
        `(batch, heads, rows, SEEN)`, what was seen in the rows.
    """
    edits = edits or PackedEdits()
    counts = {name: options.pop(name) for name in ("moved", "amplified") if name in options}
    plan = RowsPlan.of(call, packed, edits, reads_values=output is not None, **options)
    batch, heads = call.query.shape[:2]
    seen = torch.empty(batch, heads, plan.cut.rows, SEEN, dtype=torch.float32, device=call.query.device)
    plan.run(call, edits, output, seen=seen, **counts)
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
    cut,
    scale,
    SLOTS: tl.constexpr,
    F: tl.constexpr,
):
    """One part of the keys for some rows of one key head; line r is row r % rows of head r // rows."""
    place = seen_place(place)
    rows, splits, length, kv_heads, group = cut[0] >> 5, cut[1] >> 5, cut[2] >> 5, cut[3] >> 5, cut[4] >> 5
    spec = mask, change, place, scale
    tile, split, sample = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    kv_head = (tile % kv_heads).to(tl.int64)
    copy = tl.arange(0, F.block_m)
    slot = copy % SLOTS
    line = (tile // kv_heads) * (F.block_m // SLOTS) + copy // SLOTS
    is_row = line < group * rows
    head = kv_head * group + tl.minimum(line // rows, group - 1)
    line = line % rows
    at = line
    if index is not None:
        at = tl.load(index + sample * rows + line)
    row = place.start + at
    width = tl.arange(0, F.block_d)
    is_width = width < F.head_dim
    heads = kv_heads * group

    q_at = query + sample * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]
    q = tl.load(q_at[:, None] + width[None, :], mask=is_row[:, None] & is_width[None, :], other=0.0)
    state = row_state(at, head, sample, is_row, heads, spec, F)
    key += sample * strides[3] + kv_head * strides[4]
    if value is not None:
        value += sample * strides[6] + kv_head * strides[7]

    # Columns that no row of the tile attends to are left out.
    begin = split * length
    end = tl.minimum(begin + length, place.written)
    if place.window is not None:
        first = tl.min(tl.where(is_row, row, 2147483647), 0) - place.window + 1 - place.first_key
        begin = tl.maximum(begin, first // F.block_n * F.block_n)
    if not F.shape.later:
        end = tl.minimum(end, tl.max(tl.where(is_row, row, -1), 0) + 1 - place.first_key)
    acc = tl.zeros([F.block_m, F.block_d], tl.float32)
    top = tl.full([F.block_m], float("-inf"), tl.float32)
    total = tl.zeros([F.block_m], tl.float32)
    for first in range(begin, end, F.block_n):
        column = first + tl.arange(0, F.block_n)
        is_column = column < end
        far = column.to(tl.int64)
        k_at = key + far[None, :] * strides[5] + width[:, None]
        k = tl.load(k_at, mask=is_width[:, None] & is_column[None, :], other=0.0)
        if SLOTS > 1:
            kind = class_of(key_class, column, is_column, sample, place)
        scores = edited_scores(q, k, row, state, column, is_column, sample, spec, F)
        if SLOTS > 1:
            scores = tl.where(slot[:, None] == kind[None, :], scores, float("-inf"))
        above = tl.maximum(top, tl.max(scores, 1))
        # A row that has met no key yet keeps minus infinity; its weights must be 0, not NaN.
        base = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.math.exp2(scores - base[:, None])
        fade = tl.math.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        if value is not None:
            v_at = value + far[:, None] * strides[8] + width[None, :]
            v = tl.load(v_at, mask=is_column[:, None] & is_width[None, :], other=0.0)
            acc = dot(weights.to(v.dtype), v, acc * fade[:, None], F.precision)
        top = above

    entries = splits * SLOTS
    entry = ((sample * heads + head) * rows + line) * entries + split * SLOTS + slot
    behind = tl.num_programs(2).to(tl.int64) * heads * rows * entries
    tl.store(tops + entry, top, mask=is_row)
    tl.store(tops + behind + entry, total, mask=is_row)
    if value is not None:
        part_at = parts + entry[:, None] * F.head_dim + width[None, :]
        tl.store(part_at, acc, mask=is_row[:, None] & is_width[None, :])


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
    cut,
    settings,
    RULE: tl.constexpr,
    EVERY: tl.constexpr,
    SLOTS: tl.constexpr,
    F: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Joins the parts of one row: masses, what a rule makes of them, and the output."""
    rows, splits = cut[0] >> 5, cut[1] >> 5
    line, head = tl.program_id(0), tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)
    heads = tl.num_programs(1)
    at = line
    if index is not None:
        at = tl.load(index + sample * rows + line)
    place_of_row = sample * (place.queries >> 5) + at
    line = (sample * heads + head) * rows + line
    entries = splits * SLOTS
    behind = tl.num_programs(2).to(tl.int64) * heads * rows * entries
    tops += line * entries
    entry = tl.arange(0, ENTRIES)
    each = tl.load(tops + entry, mask=entry < entries, other=float("-inf"))
    top = tl.max(each, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    sums = tl.load(tops + behind + entry, mask=entry < entries, other=0.0) * tl.math.exp2(each - base)
    total = tl.sum(sums, 0)
    divisor = tl.where(total > 0, total, 1.0)

    is_amplified = total < 0.0
    if change.amplified is not None:
        may_amplify = tl.load(change.amplified + place_of_row) != 0
        is_amplified = may_amplify
        if change.heads is not None:
            is_amplified = is_amplified & (tl.load(change.heads + sample * heads + head) != 0.0)
        if amplified_counts is not None:
            tl.atomic_add(amplified_counts, is_amplified.to(tl.float64))
            tl.atomic_add(amplified_counts + 1, may_amplify.to(tl.float64))
    is_moved, mass = total < 0.0, 0.0
    text, text_sink, patch, patch_sink = total / divisor, 0.0, 0.0, 0.0
    of_text, of_text_sink, of_patch, of_patch_sink = 1.0, 1.0, 1.0, 1.0
    if SLOTS > 1:
        of_entry = entry % SLOTS
        text = tl.sum(tl.where(of_entry == 0, sums, 0.0), 0) / divisor
        text_sink = tl.sum(tl.where(of_entry == 1, sums, 0.0), 0) / divisor
        patch = tl.sum(tl.where(of_entry == 2, sums, 0.0), 0) / divisor
        patch_sink = tl.sum(tl.where(of_entry == 3, sums, 0.0), 0) / divisor
        of_text, of_text_sink, of_patch, of_patch_sink, is_moved, mass = RULE(
            text, text_sink, patch, patch_sink, settings
        )
        may_move = tl.load(moved + place_of_row) != 0
        is_moved = is_moved & may_move
        mass = tl.where(is_moved, mass, 0.0)
        of_text, of_text_sink = tl.where(is_moved, of_text, 1.0), tl.where(is_moved, of_text_sink, 1.0)
        of_patch, of_patch_sink = tl.where(is_moved, of_patch, 1.0), tl.where(is_moved, of_patch_sink, 1.0)
        if moved_counts is not None:
            tl.atomic_add(moved_counts, is_moved.to(tl.float64))
            tl.atomic_add(moved_counts + 1, may_move.to(tl.float64))
            tl.atomic_add(moved_counts + 2, mass.to(tl.float64))
    if seen is not None:
        here = seen + line * 12
        # Natural logarithm: 0.693... is log 2.
        natural = (top + tl.math.log2(divisor)) * 0.6931471805599453
        tl.store(here, tl.where(total > 0, natural, float("-inf")))
        tl.store(here + 1, text)
        tl.store(here + 2, text_sink)
        tl.store(here + 3, patch)
        tl.store(here + 4, patch_sink)
        tl.store(here + 5, of_text)
        tl.store(here + 6, of_text_sink)
        tl.store(here + 7, of_patch)
        tl.store(here + 8, of_patch_sink)
        tl.store(here + 9, is_moved.to(tl.float32))
        tl.store(here + 10, mass)
        tl.store(here + 11, is_amplified.to(tl.float32))

    if output is not None:
        width = tl.arange(0, F.block_d)
        is_width = width < F.head_dim
        acc = tl.zeros([F.block_d], tl.float32)
        for first in range(0, entries, CHUNK):
            near = first + tl.arange(0, CHUNK)
            is_near = near < entries
            factor = tl.math.exp2(tl.load(tops + near, mask=is_near, other=float("-inf")) - base) / divisor
            if SLOTS > 1:
                kind = near % SLOTS
                factor *= factor_of(kind, of_text, of_text_sink, of_patch, of_patch_sink)
            part_at = parts + (line * entries + near)[:, None] * F.head_dim + width[None, :]
            part = tl.load(part_at, mask=is_near[:, None] & is_width[None, :], other=0.0)
            acc += tl.sum(part * factor[:, None], 0)
        out_at = output + sample * strides[0] + at.to(tl.int64) * strides[1] + head * strides[2] + width
        if EVERY:
            tl.store(out_at, acc.to(output.dtype.element_ty), mask=is_width)
        else:
            many = tl.where(is_moved.to(tl.int32) + is_amplified.to(tl.int32) > 0, F.head_dim, 0)
            tl.store(out_at, acc.to(output.dtype.element_ty), mask=width < many)
