"""The device side of `rows`: two sweeps over the keys of the touched rows, and the sum of their splits."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from lvlm_attn.kernels.triton.common import amounts, dot, row_bits, row_gains
from lvlm_attn.kernels.triton.scores import edited_scores


@triton.jit
def _places(index, flags, sample, tile, rows, group_size, BLOCK_M: tl.constexpr):
    """What the rows of a tile are: the place among the touched rows, head in the group, query, flags."""
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_place = place < rows * group_size
    member = tl.minimum(place // rows, group_size - 1)
    place = place % rows
    at = tl.load(index + sample * rows + place)
    flag = tl.load(flags + sample * rows + place, mask=is_place, other=0).to(tl.int32)
    return place, member, at, tl.where(is_place, flag, 0), is_place


@triton.jit
def _span(
    row, is_live, split, chunk, first_key, written, window, HAS_LATER, HAS_WINDOW, BLOCK_N: tl.constexpr
):
    """The columns one split of a tile has to look at, `begin` a multiple of the block."""
    begin, stop = split * chunk, tl.minimum(split * chunk + chunk, written)
    if HAS_WINDOW:
        earliest = tl.min(tl.where(is_live, row, 2147483647), 0) - window + 1 - first_key
        begin = tl.maximum(begin, earliest // BLOCK_N * BLOCK_N)
    if not HAS_LATER:
        stop = tl.minimum(stop, tl.max(tl.where(is_live, row, -1), 0) + 1 - first_key)
    return begin, stop


# Long because maximum, denominator and masses stay in the registers of one loop.
@triton.jit(
    do_not_specialize=[
        "scale",
        "start",
        "first_key",
        "queries",
        "keys",
        "written",
        "window",
        "rows",
        "chunk",
        "splits",
        "total",
    ]
)
def see_rows(
    query,
    key,
    seen,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    index,
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
    rows,
    chunk,
    splits,
    total,
    kv_heads,
    group_size,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
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
    HAS_CLASS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """First sweep: maximum, denominator and class masses of every row over one split of the keys."""
    split, tile = tl.program_id(0), tl.program_id(1)
    sample = (tl.program_id(2) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(2) % kv_heads).to(tl.int64)
    place, member, at, flag, is_place = _places(index, flags, sample, tile, rows, group_size, BLOCK_M)
    head = kv_head * group_size + member
    row = start + at
    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM
    q_at = query + sample * stride_qb + head[:, None] * stride_qh + at[:, None] * stride_qm + width[None, :]
    q = tl.load(q_at, mask=is_place[:, None] & is_width[None, :], other=0.0)
    row_group = tl.zeros([BLOCK_M], tl.int32)
    if HAS_TABLE:
        row_group = tl.load(query_group + sample * queries + at)
    row_earlier = row_bits(earlier_bits, row_group, HAS_TABLE)
    row_later = row_bits(later_bits, row_group, HAS_TABLE)
    begin, stop = _span(
        row, flag > 0, split, chunk, first_key, written, window, HAS_LATER, HAS_WINDOW, BLOCK_N
    )
    key += sample * stride_kb + kv_head * stride_kh
    if HAS_KEYS:
        key_group += sample * keys
    if HAS_GAIN:
        gain += sample * keys
    if HAS_BIAS:
        bias += sample * keys
    if HAS_CLASS:
        key_class += sample * keys
    amount = amounts(flag, sample * kv_heads * group_size + head, head_gain, is_place, HAS_HEADS)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    text = tl.zeros([BLOCK_M], tl.float32)
    text_sink = tl.zeros([BLOCK_M], tl.float32)
    patch = tl.zeros([BLOCK_M], tl.float32)
    patch_sink = tl.zeros([BLOCK_M], tl.float32)
    for first in range(begin, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        is_column = column < stop
        k_at = key + column[None, :] * stride_kn + width[:, None]
        k = tl.load(k_at, mask=is_width[:, None] & is_column[None, :], other=0.0)
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
        above = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.math.exp2(scores - base[:, None])
        fade = tl.math.exp2(top - base)
        if HAS_CLASS:
            kind = tl.load(key_class + column, mask=is_column, other=0)[None, :]
            text = text * fade + tl.sum(tl.where(kind == 0, weights, 0.0), 1)
            text_sink = text_sink * fade + tl.sum(tl.where(kind == 1, weights, 0.0), 1)
            patch = patch * fade + tl.sum(tl.where(kind == 2, weights, 0.0), 1)
            patch_sink = patch_sink * fade + tl.sum(tl.where(kind == 3, weights, 0.0), 1)
        else:
            text = text * fade + tl.sum(weights, 1)
        top = above
    at_row = (sample * kv_heads * group_size + head) * rows + place
    here = seen + split * 5 * total + at_row
    tl.store(here, top, mask=is_place)
    tl.store(here + total, text, mask=is_place)
    tl.store(here + 2 * total, text_sink, mask=is_place)
    tl.store(here + 3 * total, patch, mask=is_place)
    tl.store(here + 4 * total, patch_sink, mask=is_place)


# Long because factors and outputs stay in the registers of one loop.
@triton.jit(
    do_not_specialize=[
        "scale",
        "start",
        "first_key",
        "queries",
        "keys",
        "written",
        "window",
        "rows",
        "chunk",
        "splits",
        "total",
        "removed_fraction",
        "rho",
        "mass_floor",
    ]
)
def write_rows(
    query,
    key,
    value,
    output,
    seen,
    parts,
    log_sum_exp,
    masses,
    is_changed,
    counts,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    stride_ob,
    stride_om,
    stride_oh,
    removed_fraction,
    rho,
    mass_floor,
    index,
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
    rows,
    chunk,
    splits,
    total,
    kv_heads,
    group_size,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
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
    HAS_CLASS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Second sweep: joins what the splits saw, decides what changes, and adds up weighted values."""
    split, tile = tl.program_id(0), tl.program_id(1)
    sample = (tl.program_id(2) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(2) % kv_heads).to(tl.int64)
    place, member, at, flag, is_place = _places(index, flags, sample, tile, rows, group_size, BLOCK_M)
    head = kv_head * group_size + member
    row = start + at
    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM
    q_at = query + sample * stride_qb + head[:, None] * stride_qh + at[:, None] * stride_qm + width[None, :]
    q = tl.load(q_at, mask=is_place[:, None] & is_width[None, :], other=0.0)
    row_group = tl.zeros([BLOCK_M], tl.int32)
    if HAS_TABLE:
        row_group = tl.load(query_group + sample * queries + at)
    row_earlier = row_bits(earlier_bits, row_group, HAS_TABLE)
    row_later = row_bits(later_bits, row_group, HAS_TABLE)
    begin, stop = _span(
        row, flag > 0, split, chunk, first_key, written, window, HAS_LATER, HAS_WINDOW, BLOCK_N
    )
    key += sample * stride_kb + kv_head * stride_kh
    if HAS_KEYS:
        key_group += sample * keys
    if HAS_GAIN:
        gain += sample * keys
    if HAS_BIAS:
        bias += sample * keys
    if HAS_CLASS:
        key_class += sample * keys
    amount = amounts(flag, sample * kv_heads * group_size + head, head_gain, is_place, HAS_HEADS)

    at_row = (sample * kv_heads * group_size + head) * rows + place
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    text = tl.zeros([BLOCK_M], tl.float32)
    text_sink = tl.zeros([BLOCK_M], tl.float32)
    patch = tl.zeros([BLOCK_M], tl.float32)
    patch_sink = tl.zeros([BLOCK_M], tl.float32)
    for part in range(splits):
        here = seen + part * 5 * total + at_row
        other = tl.load(here, mask=is_place, other=float("-inf"))
        above = tl.maximum(top, other)
        base = tl.where(above == float("-inf"), 0.0, above)
        fade, enter = tl.math.exp2(top - base), tl.math.exp2(other - base)
        text = text * fade + enter * tl.load(here + total, mask=is_place, other=0.0)
        text_sink = text_sink * fade + enter * tl.load(here + 2 * total, mask=is_place, other=0.0)
        patch = patch * fade + enter * tl.load(here + 3 * total, mask=is_place, other=0.0)
        patch_sink = patch_sink * fade + enter * tl.load(here + 4 * total, mask=is_place, other=0.0)
        top = above
    whole = text + text_sink + patch + patch_sink
    divisor = tl.where(whole > 0, whole, 1.0)
    text, text_sink, patch, patch_sink = (
        text / divisor,
        text_sink / divisor,
        patch / divisor,
        patch_sink / divisor,
    )
    # In units of log 2; rows without any key have no finite score, so any finite number will do for them.
    denominator = tl.where(whole > 0, top + tl.math.log2(divisor), 0.0)
    is_written = amount != 0.0
    if HAS_CLASS:
        keep, grow, passes, moved = row_gains(text_sink, patch, patch_sink, removed_fraction, rho, mass_floor)
        may_move = (flag & 2) != 0
        moves = passes & may_move
        keep = tl.where(moves, keep, 1.0)
        grow = tl.where(moves, grow, 1.0)
        is_written = is_written | moves
    if split == 0:
        natural = tl.where(whole > 0, denominator * 0.6931471805599453, float("-inf"))
        tl.store(log_sum_exp + at_row, natural, mask=is_place)
        tl.store(masses + at_row * 4, text, mask=is_place)
        tl.store(masses + at_row * 4 + 1, text_sink, mask=is_place)
        tl.store(masses + at_row * 4 + 2, patch, mask=is_place)
        tl.store(masses + at_row * 4 + 3, patch_sink, mask=is_place)
        tl.store(is_changed + at_row, is_written.to(tl.int8), mask=is_place)
        if HAS_CLASS and counts is not None:
            tl.atomic_add(counts, tl.sum(moves.to(tl.float64), 0))
            tl.atomic_add(counts + 1, tl.sum(may_move.to(tl.float64), 0))
            tl.atomic_add(counts + 2, tl.sum(tl.where(moves, moved, 0.0).to(tl.float64), 0))

    # Nothing is left to do where no row changes.
    stop = tl.where(tl.max(is_written.to(tl.int32), 0) > 0, stop, begin)
    value += sample * stride_vb + kv_head * stride_vh
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for first in range(begin, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        is_column = column < stop
        k_at = key + column[None, :] * stride_kn + width[:, None]
        k = tl.load(k_at, mask=is_width[:, None] & is_column[None, :], other=0.0)
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
        weights = tl.math.exp2(scores - denominator[:, None])
        if HAS_CLASS:
            kind = tl.load(key_class + column, mask=is_column, other=0)[None, :]
            factor = tl.where(kind == 2, grow[:, None], keep[:, None])
            weights = weights * tl.where(kind == 0, 1.0, factor)
        v_at = value + column[:, None] * stride_vn + width[None, :]
        v = tl.load(v_at, mask=is_column[:, None] & is_width[None, :], other=0.0)
        acc = dot(weights.to(v.dtype), v, acc, PRECISION)
    mask = is_written[:, None] & is_width[None, :]
    if parts is None:
        out_at = (
            output + sample * stride_ob + head[:, None] * stride_oh + at.to(tl.int64)[:, None] * stride_om
        )
        tl.store(out_at + width[None, :], acc.to(output.dtype.element_ty), mask=mask)
    else:
        part_at = parts + (split * total + at_row)[:, None] * HEAD_DIM + width[None, :]
        tl.store(part_at, acc, mask=mask)


@triton.jit(do_not_specialize=["rows", "splits", "total"])
def add_parts(
    parts,
    output,
    is_changed,
    index,
    stride_ob,
    stride_om,
    stride_oh,
    rows,
    splits,
    total,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Adds up the splits of changed rows, always in the same order, and writes them."""
    head, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_place = place < rows
    at_row = (sample * tl.num_programs(1) + head) * rows + place
    is_written = tl.load(is_changed + at_row, mask=is_place, other=0) != 0
    at = tl.load(index + sample * rows + place, mask=is_place, other=0).to(tl.int64)
    width = tl.arange(0, BLOCK_D)
    mask = is_written[:, None] & (width < HEAD_DIM)[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for part in range(splits):
        part_at = parts + (part * total + at_row)[:, None] * HEAD_DIM + width[None, :]
        acc += tl.load(part_at, mask=mask, other=0.0)
    out_at = output + sample * stride_ob + head * stride_oh + at[:, None] * stride_om + width[None, :]
    tl.store(out_at, acc.to(output.dtype.element_ty), mask=mask)
