"""Attention of one to eight queries over a long cache, split over the keys: the path of decoding.

Decoding is bound by reading keys and values, so they are read once: all query heads of a key head share a tile,
and a redistribution needs no second pass. Its factors are known only when the whole row has been seen, so every
row stands four times in the tile, once per key class, and each copy sees the keys of its class alone. Four copies
are four ordinary online softmaxes: there is one product with the values and one accumulator of at most 64 rows,
which fits the registers, and since the tensor cores work on 16 rows at least, the copies of up to four rows cost
nothing. The alternative, one launch for the masses and one for the outputs, reads the keys twice. The second launch
here only joins the splits: it adds up masses, decides as `spec.redistribution_gains` does, and weighs the copies.

Splitting decode over keys: Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference" (2023).
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.triton.common import amounts, dot, on_device, precision, row_bits, row_gains
from lvlm_attn.kernels.triton.scores import check_call, edited_scores, shared_arguments
from lvlm_attn.kernels.triton.tiles import Chip, Tile, chip_of, padded_head_dim

MAX_QUERIES = 8
"""Queries the kernel is made for; more belong to prefill."""
MAX_SPLITS = 64
CLASSES = 4


@dataclass(frozen=True)
class Decoded:
    """What a decode call gives.

    Attributes:
        output: `(batch, queries, heads, head_dim)`; 0 in rows without any key.
        log_sum_exp: `(batch, heads, queries)`, natural, of the edited scores; minus infinity in such rows.
        masses: `(batch, heads, queries, 4)`, the weight on each `KeyClass` before it is moved, or None where
            there is no redistribution.
        is_changed: `(batch, heads, queries)` int8, 1 in touched rows whose weight was moved, or None.
        moved: `(batch, heads, queries)`, the weight moved, 0 in rows that stay, or None.
    """

    output: Tensor
    log_sum_exp: Tensor
    masses: Tensor | None = None
    is_changed: Tensor | None = None
    moved: Tensor | None = None


def decode_tile(chip: Chip, head_dim: int, itemsize: int, rows: int) -> Tile:
    """The tile for `rows` rows that share a key head, copies included."""
    wide = padded_head_dim(head_dim)
    if itemsize == 4:  # no tensor cores: large tiles spill
        return Tile(16, 32 if wide < 64 else 16, 4, 1 if chip == "cdna" else 2)
    most = 64 if wide <= 64 or (wide == 128 and chip == "sm_90") else 32
    block_m = min(most, max(16, 1 << (rows - 1).bit_length()))
    block_n = 64 if wide <= 128 else 32
    return Tile(block_m, block_n, 4, {"sm_90": 3, "sm_80": 2, "small": 2, "cdna": 1, "cpu": 1}[chip])


def choose_splits(programs: int, columns: int, processors: int, block_n: int) -> int:
    """How many parts the keys are split into.

    Two blocks run on a multiprocessor at a time. The fewest splits are taken that keep the last wave of blocks
    within 5 % of the fullest there is; no split is shorter than 4 tiles.

    Args:
        programs: blocks there are for each split.
        columns: keys in the cache.
        processors: multiprocessors of the device.
        block_n: keys in a tile.

    Example:
        >>> choose_splits(32, 2900, 132, 64)  # 32 heads, 132 multiprocessors: 8 x 32 blocks run at once
        8
    """
    places = 2 * processors
    most = max(min(MAX_SPLITS, columns // (4 * block_n)), 1)
    filled = [programs * splits / places for splits in range(1, most + 1)]
    efficiency = [waves / -(-waves // 1) for waves in filled]
    return next(i + 1 for i, value in enumerate(efficiency) if value >= 0.95 * max(efficiency))


def decode(
    call: AttentionCall,
    *,
    packed: PackedVisibility,
    edits: PackedEdits | None = None,
    flags: Tensor | None = None,
    counts: Tensor | None = None,
    output: Tensor | None = None,
    splits: int | None = None,
    tile: Tile | None = None,
) -> Decoded:
    """Computes attention with edits for the last few queries of a sequence.

    Args:
        call: the attention call; tensors of any strides whose last is 1.
        packed: the attention mask over groups, from `pack_visibility`.
        edits: what is done to scores and weights, from `pack_edits`; None for nothing.
        flags: `(batch, queries)` int8, per row the sum of 1 if its scores change and 2 if its weight may be moved
            (`rows.AMPLIFIED` and `MOVED`); needed where `edits` does something.
        counts: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and the
            weight moved.
        output: `(batch, queries, heads, head_dim)` to write into; every number of it is overwritten.
        splits: parts of the keys, chosen by the device if None.
        tile: tile sizes instead of the chip's.

    Returns:
        The output, and what was seen and done on the way.

    Raises:
        LvlmAttnError: if shapes do not belong together or the rows of the edits are missing.
    """
    check_call(call)
    query = call.query
    edits = edits or PackedEdits()
    moves = edits.key_class is not None
    if flags is None and (moves or edits.gain is not None or edits.bias is not None):
        raise LvlmAttnError("The edits of a decode call need rows to act on; pass flags (batch, queries).")
    plan = _Plan.of(call, packed, moves, splits, tile)
    batch, heads, queries, head_dim = query.shape

    def fresh(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    entries = plan.splits * plan.slots
    parts, tops = fresh(batch, heads, queries, entries, head_dim), fresh(2, batch, heads, queries, entries)
    result = Decoded(
        query.new_empty(batch, queries, heads, head_dim) if output is None else output,
        fresh(batch, heads, queries),
        fresh(batch, heads, queries, CLASSES) if moves else None,
        fresh(batch, heads, queries, dtype=torch.int8) if moves else None,
        fresh(batch, heads, queries) if moves else None,
    )
    with on_device(query):
        _launch_splits(call, packed, edits, flags, plan, parts, tops)
        _launch_join(edits, flags, counts, plan, parts, tops, result)
    return result


@dataclass(frozen=True)
class _Plan:
    """How a decode call is cut up: the rows of a key head into tiles, the keys into splits.

    Attributes:
        tile: shape of a tile.
        slots: copies of every row.
        tiles: tiles of one key head.
        first: the first key column any query attends to.
        stop: the one after the last.
        splits: parts of the keys.
        length: keys in a part.
    """

    tile: Tile
    slots: int
    tiles: int
    first: int
    stop: int
    splits: int
    length: int

    @staticmethod
    def of(
        call: AttentionCall, packed: PackedVisibility, moves: bool, splits: int | None, tile: Tile | None
    ) -> _Plan:
        query, kv_heads = call.query, call.key.shape[1]
        slots = CLASSES if moves else 1
        shared = query.shape[1] // kv_heads * query.shape[2]
        tile = tile or decode_tile(chip_of(query), query.shape[3], query.element_size(), shared * slots)
        tiles = triton.cdiv(shared, tile.block_m // slots)
        first, stop = _columns(call.geometry, packed)
        if splits is None:
            processors = (
                torch.cuda.get_device_properties(query.device).multi_processor_count if query.is_cuda else 4
            )
            splits = choose_splits(query.shape[0] * kv_heads * tiles, stop - first, processors, tile.block_n)
        length = triton.cdiv(triton.cdiv(max(stop - first, 1), splits), tile.block_n) * tile.block_n
        return _Plan(tile, slots, tiles, first, stop, splits, length)


def _launch_splits(
    call: AttentionCall,
    packed: PackedVisibility,
    edits: PackedEdits,
    flags: Tensor | None,
    plan: _Plan,
    parts: Tensor,
    tops: Tensor,
) -> None:
    query, key, value = call.query, call.key, call.value
    batch, heads, _, head_dim = query.shape
    kv_heads = key.shape[1]
    _decode_split[(plan.splits, kv_heads * plan.tiles, batch)](
        query,
        key,
        value,
        parts,
        tops,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        flags,
        edits.key_class,
        first=plan.first,
        stop=plan.stop,
        length=plan.length,
        splits=plan.splits,
        kv_heads=kv_heads,
        group_size=heads // kv_heads,
        **shared_arguments(call, packed, edits),
        SLOTS=plan.slots,
        HEAD_DIM=head_dim,
        BLOCK_D=padded_head_dim(head_dim),
        BLOCK_M=plan.tile.block_m,
        BLOCK_N=plan.tile.block_n,
        PRECISION=precision(query.dtype),
        num_warps=plan.tile.warps,
        num_stages=plan.tile.stages,
    )


def _launch_join(
    edits: PackedEdits,
    flags: Tensor | None,
    counts: Tensor | None,
    plan: _Plan,
    parts: Tensor,
    tops: Tensor,
    result: Decoded,
) -> None:
    batch, queries, heads, head_dim = result.output.shape
    entries = plan.splits * plan.slots
    _join_splits[(queries, heads, batch)](
        parts,
        tops,
        result.output,
        *result.output.stride()[:3],
        result.log_sum_exp,
        result.masses,
        result.is_changed,
        result.moved,
        flags,
        counts,
        entries,
        edits.removed_fraction,
        edits.rho,
        edits.mass_floor,
        SLOTS=plan.slots,
        HEAD_DIM=head_dim,
        BLOCK_D=padded_head_dim(head_dim),
        ENTRIES=max(triton.next_power_of_2(entries), 4),
        CHUNK=4,
        num_warps=4 if head_dim > 64 else 2,
    )


def _columns(geometry: Geometry, packed: PackedVisibility) -> tuple[int, int]:
    """The first key column any query attends to, and the one after the last."""
    first = 0
    if geometry.window is not None:
        first = max(geometry.start - geometry.window + 1 - geometry.first_key, 0)
    return first, min(geometry.keys, geometry.length - geometry.first_key)


# Long because maximum, denominator and output stay in the registers of one loop.
@triton.jit(
    do_not_specialize=[
        "start",
        "first_key",
        "queries",
        "keys",
        "written",
        "window",
        "first",
        "stop",
        "length",
        "splits",
        "kv_heads",
        "group_size",
        "scale",
    ]
)
def _decode_split(
    query,
    key,
    value,
    parts,
    tops,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    flags,
    key_class,
    query_group,
    key_group,
    earlier_bits,
    later_bits,
    earlier,
    later,
    strength,
    gain,
    bias,
    head_gain,
    scale,
    start,
    first_key,
    queries,
    keys,
    written,
    window,
    first,
    stop,
    length,
    splits,
    kv_heads,
    group_size,
    GROUPS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_LATER: tl.constexpr,
    REACHES: tl.constexpr,
    HAS_STRENGTH: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_GAIN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_HEADS: tl.constexpr,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One part of the keys for the rows of one key head; row r is query r % queries of head r // queries."""
    split = tl.program_id(0)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    copy = tl.arange(0, BLOCK_M)
    slot = copy % SLOTS
    line = (tl.program_id(1) // kv_heads) * (BLOCK_M // SLOTS) + copy // SLOTS
    is_row = line < group_size * queries
    head = kv_head * group_size + line // queries
    index = line % queries
    row = start + index
    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM

    q_at = query + sample * stride_qb + head * stride_qh + index * stride_qm
    q = tl.load(q_at[:, None] + width[None, :], mask=is_row[:, None] & is_width[None, :], other=0.0)
    row_group = tl.zeros([BLOCK_M], tl.int32)
    if HAS_TABLE:
        row_group = tl.load(query_group + sample * queries + index, mask=is_row, other=0)
    row_earlier = row_bits(earlier_bits, row_group, HAS_TABLE)
    row_later = row_bits(later_bits, row_group, HAS_TABLE)
    amount = tl.zeros([BLOCK_M], tl.float32)
    if HAS_GAIN or HAS_BIAS:
        flag = tl.load(flags + sample * queries + index, mask=is_row, other=0).to(tl.int32)
        amount = amounts(flag, sample * kv_heads * group_size + head, head_gain, is_row, HAS_HEADS)
    if HAS_KEYS:
        key_group += sample * keys
    if HAS_GAIN:
        gain += sample * keys
    if HAS_BIAS:
        bias += sample * keys
    if SLOTS > 1:
        key_class += sample * keys
    key += sample * stride_kb + kv_head * stride_kh
    value += sample * stride_vb + kv_head * stride_vh

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    begin = first + split * length
    end = tl.minimum(begin + length, stop)
    for at in range(begin, end, BLOCK_N):
        column = at + tl.arange(0, BLOCK_N)
        is_column = column < end
        far = column.to(tl.int64)
        k = tl.load(
            key + far[None, :] * stride_kn + width[:, None],
            mask=is_width[:, None] & is_column[None, :],
            other=0.0,
        )
        scores = edited_scores(
            q,
            k,
            row,
            row_group,
            row_earlier,
            row_later,
            amount,
            column,
            is_column,
            key_group,
            earlier,
            later,
            strength,
            gain,
            bias,
            scale,
            first_key,
            window,
            GROUPS,
            HAS_KEYS,
            HAS_TABLE,
            HAS_LATER,
            REACHES,
            HAS_STRENGTH,
            HAS_WINDOW,
            HAS_GAIN,
            HAS_BIAS,
            PRECISION,
        )
        if SLOTS > 1:
            of_key = tl.load(key_class + column, mask=is_column, other=0).to(tl.int32)
            scores = tl.where(slot[:, None] == of_key[None, :], scores, float("-inf"))
        above = tl.maximum(top, tl.max(scores, 1))
        # A row that has met no key yet keeps minus infinity; its weights must be 0, not NaN.
        base = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.math.exp2(scores - base[:, None])
        fade = tl.math.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        v = tl.load(
            value + far[:, None] * stride_vn + width[None, :],
            mask=is_column[:, None] & is_width[None, :],
            other=0.0,
        )
        acc = dot(weights.to(v.dtype), v, acc * fade[:, None], PRECISION)
        top = above

    heads = kv_heads * group_size
    entries = splits * SLOTS
    place = ((sample * heads + head) * queries + index) * entries + split * SLOTS + slot
    tl.store(
        parts + place[:, None] * HEAD_DIM + width[None, :], acc, mask=is_row[:, None] & is_width[None, :]
    )
    tl.store(tops + place, top, mask=is_row)
    behind = tl.num_programs(2).to(tl.int64) * heads * queries * entries
    tl.store(tops + behind + place, total, mask=is_row)


# Long because it takes over twenty arguments, and Triton has no structures.
@triton.jit(do_not_specialize=["entries", "removed_fraction", "rho", "mass_floor"])
def _join_splits(
    parts,
    tops,
    output,
    stride_ob,
    stride_om,
    stride_oh,
    log_sum_exp,
    masses,
    is_changed,
    moved,
    flags,
    counts,
    entries,
    removed_fraction,
    rho,
    mass_floor,
    SLOTS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ENTRIES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Joins the parts of one row: masses, what a redistribution does with them, and the output."""
    index, head = tl.program_id(0), tl.program_id(1)
    sample = tl.program_id(2).to(tl.int64)
    queries, heads = tl.num_programs(0), tl.num_programs(1)
    line = (sample * heads + head) * queries + index
    behind = tl.num_programs(2).to(tl.int64) * heads * queries * entries
    tops += line * entries
    entry = tl.arange(0, ENTRIES)
    is_entry = entry < entries
    each = tl.load(tops + entry, mask=is_entry, other=float("-inf"))
    top = tl.max(each, 0)
    base = tl.where(top == float("-inf"), 0.0, top)
    sums = tl.load(tops + behind + entry, mask=is_entry, other=0.0) * tl.math.exp2(each - base)
    total = tl.sum(sums, 0)
    divisor = tl.where(total > 0, total, 1.0)
    # Natural logarithm: 0.693... is log 2.
    natural = tl.where(total > 0, (top + tl.math.log2(divisor)) * 0.6931471805599453, float("-inf"))
    tl.store(log_sum_exp + line, natural)

    keep, grow = 1.0, 1.0
    if SLOTS > 1:
        of_entry = entry % SLOTS
        text = tl.sum(tl.where(of_entry == 0, sums, 0.0), 0) / divisor
        text_sink = tl.sum(tl.where(of_entry == 1, sums, 0.0), 0) / divisor
        patch = tl.sum(tl.where(of_entry == 2, sums, 0.0), 0) / divisor
        patch_sink = tl.sum(tl.where(of_entry == 3, sums, 0.0), 0) / divisor
        tl.store(masses + line * SLOTS, text)
        tl.store(masses + line * SLOTS + 1, text_sink)
        tl.store(masses + line * SLOTS + 2, patch)
        tl.store(masses + line * SLOTS + 3, patch_sink)
        keep, grow, is_row, mass = row_gains(text_sink, patch, patch_sink, removed_fraction, rho, mass_floor)
        may_move = (tl.load(flags + sample * queries + index) & 2) != 0
        is_row = is_row & may_move
        mass = tl.where(is_row, mass, 0.0)
        keep, grow = tl.where(is_row, keep, 1.0), tl.where(is_row, grow, 1.0)
        tl.store(is_changed + line, is_row.to(tl.int8))
        tl.store(moved + line, mass)
        if counts is not None:
            tl.atomic_add(counts, is_row.to(tl.float64))
            tl.atomic_add(counts + 1, may_move.to(tl.float64))
            tl.atomic_add(counts + 2, mass.to(tl.float64))

    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM
    acc = tl.zeros([BLOCK_D], tl.float32)
    for at in range(0, entries, CHUNK):
        near = at + tl.arange(0, CHUNK)
        is_near = near < entries
        factor = tl.math.exp2(tl.load(tops + near, mask=is_near, other=float("-inf")) - base) / divisor
        if SLOTS > 1:
            of_near = near % SLOTS
            factor *= tl.where(of_near == 0, 1.0, tl.where(of_near == 2, grow, keep))
        part = tl.load(
            parts + (line * entries + near)[:, None] * HEAD_DIM + width[None, :],
            mask=is_near[:, None] & is_width[None, :],
            other=0.0,
        )
        acc += tl.sum(part * factor[:, None], 0)
    out_at = output + sample * stride_ob + index * stride_om + head * stride_oh + width
    tl.store(out_at, acc.to(output.dtype.element_ty), mask=is_width)
