"""What can be read off the softmax weights, in Triton: two streams over the keys, memory of rows plus keys.

The first stream finds the log-sum-exp of every row and, where weight is moved, the factors of the key classes. With
both known each weight is known from its score alone, so the second stream needs no running maximum and goes in
whatever order suits: along the rows for entropy, class masses and the weights of each head; down the columns for
their sums over rows; over the heads for their mean. The definitions are those of `readouts.Reading`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility
from lvlm_attn.kernels.readouts import Reading, Readout, empty_reading
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton.columns import sum_over
from lvlm_attn.kernels.triton.common import amounts, on_device, precision, row_bits, row_gains
from lvlm_attn.kernels.triton.rows import splits_for
from lvlm_attn.kernels.triton.scores import check_call, edited_scores, shared_arguments
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, padded_head_dim, rows_tile

READ = 4
"""Bit of the flags of a row that is read, beside `rows.AMPLIFIED` and `MOVED`."""
LOG_2 = 0.6931471805599453


def read(
    call: AttentionCall,
    wanted: Readout,
    *,
    packed: PackedVisibility,
    edits: PackedEdits | None = None,
    flags: Tensor | None = None,
    splits: int | None = None,
    tile: Tile | None = None,
) -> Reading:
    """Reads quantities off the weights of an attention call.

    Args:
        call: the attention call; tensors of any strides whose last is 1, `scaling` above 0. Its values are not needed.
        wanted: which rows and quantities.
        packed: the attention mask over groups, from `pack_visibility`.
        edits: what is done to scores and weights, from `pack_edits`; None for nothing.
        flags: `(batch, queries)` int8, per row the sum of 1 if its scores change and 2 if its weight may be moved;
            needed where `edits` does something.
        splits: how many programs share the keys of a row, instead of what fills the device.
        tile: tile sizes instead of the chip's.

    Returns:
        What was read, in fp32.

    Raises:
        LvlmAttnError: if shapes do not belong together or the rows of the edits are missing.
    """
    check_call(call)
    query, geometry = call.query, call.geometry
    edits = edits or PackedEdits()
    batch, heads, queries, head_dim = query.shape
    wanted.check(batch, queries)
    if flags is None and any(item is not None for item in (edits.key_class, edits.gain, edits.bias)):
        raise LvlmAttnError("The edits of a readout need rows to act on; pass flags (batch, queries).")
    found = Rows.of(wanted.is_read.to(query.device))
    if found is None:
        return empty_reading(wanted, heads, geometry.keys, query.device, torch.float32)
    is_read = found.is_touched.to(torch.int8)
    marks = is_read * READ if flags is None else is_read * (flags.gather(1, found.index) + READ)
    group, rows = heads // call.key.shape[1], found.index.shape[1]
    if tile is None:
        tile = rows_tile(chip_of(query), head_dim, query.element_size(), rows * group)
        # Wider tiles spill where all quantities are asked for at once.
        tile = tile._replace(block_n=min(tile.block_n, 32))
    shared = _shared(call, packed, edits, found.index, marks.contiguous(), tile)
    masses, entropy, weights = _streams(call, wanted, edits, shared, splits)
    if wanted.rows == "mean":
        weights = sum_over("heads", shared) / heads
    return Reading(
        found.index,
        found.is_touched,
        shared["settled"][0] * LOG_2,
        masses=None if masses is None else masses.sum(-1),
        entropy=None if entropy is None else entropy.sum(-1) * LOG_2,
        rows=weights,
        column_sums=sum_over("rows", shared) if wanted.column_sums else None,
    )


def _shared(
    call: AttentionCall,
    packed: PackedVisibility,
    edits: PackedEdits,
    index: Tensor,
    marks: Tensor,
    tile: Tile,
) -> dict[str, Any]:
    """The arguments, by name, of both streams and of `columns`."""
    query, rows = call.query, index.shape[1]
    batch, heads, _, head_dim = query.shape
    return {
        "query": query,
        "key": call.key,
        "index": index.to(torch.int32).contiguous(),
        "flags": marks,
        "settled": torch.empty(3, batch, heads, rows, dtype=torch.float32, device=query.device),
        "move_class": edits.key_class,
        **dict(zip(("stride_qb", "stride_qh", "stride_qm"), query.stride())),
        **dict(zip(("stride_kb", "stride_kh", "stride_kn"), call.key.stride())),
        **shared_arguments(call, packed, edits),
        "rows": rows,
        "group_size": heads // call.key.shape[1],
        "MOVES": edits.key_class is not None,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PRECISION": precision(query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _streams(
    call: AttentionCall, wanted: Readout, edits: PackedEdits, shared: dict[str, Any], splits: int | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Both streams along the rows: fills `settled`, gives class masses and entropy by split, and the weights."""
    query, geometry = call.query, call.geometry
    batch, heads, kv_heads, rows = *query.shape[:2], call.key.shape[1], shared["rows"]
    written, block_n = shared["written"], shared["BLOCK_N"]
    tiles = triton.cdiv(rows * shared["group_size"], shared["BLOCK_M"])
    splits = splits or splits_for(query, tiles * batch * kv_heads, triton.cdiv(written, block_n))

    def fresh(*shape: int, wants: bool = True, zero: bool = False) -> Tensor | None:
        make = torch.zeros if zero else torch.empty
        return make(shape, dtype=torch.float32, device=query.device) if wants else None

    of_read = None
    if wanted.key_class is not None:
        of_read = geometry.to_columns(wanted.key_class.to(query.device, torch.int8)).contiguous()
    masses = fresh(batch, heads, rows, 4, splits, wants=of_read is not None)
    entropy = fresh(batch, heads, rows, splits, wants=wanted.entropy)
    weights = fresh(batch, heads, rows, geometry.keys, wants=wanted.rows == "heads", zero=True)
    along: dict[str, Any] = {
        **shared,
        "seen": fresh(5, batch, heads, rows, splits),
        "read_class": of_read,
        "masses": masses,
        "entropy": entropy,
        "weights": weights,
        "chunk": triton.cdiv(triton.cdiv(max(written, 1), splits), block_n) * block_n,
        "splits": splits,
        "kv_heads": kv_heads,
    }
    with on_device(query):
        grid = (splits, tiles, batch * kv_heads)
        _along_rows[grid](**along, IS_FIRST=True)
        _settle_rows[(triton.cdiv(rows, 16), heads, batch)](
            along["seen"],
            shared["settled"],
            shared["flags"],
            rows,
            splits,
            edits.removed_fraction,
            edits.rho,
            edits.mass_floor,
            MOVES=shared["MOVES"],
            BLOCK_M=16,
        )
        if of_read is not None or wanted.entropy or weights is not None:
            _along_rows[grid](**along, IS_FIRST=False)
    return masses, entropy, weights


# Long because all quantities of a row stay in the registers of one loop.
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
    ]
)
def _along_rows(
    query,
    key,
    index,
    flags,
    settled,
    move_class,
    stride_qb,
    stride_qh,
    stride_qm,
    stride_kb,
    stride_kh,
    stride_kn,
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
    group_size,
    seen,
    read_class,
    masses,
    entropy,
    weights,
    chunk,
    splits,
    kv_heads,
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
    MOVES: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """One split of the keys for a tile of rows; `IS_FIRST` finds sums of powers, else weights are read."""
    split, tile = tl.program_id(0), tl.program_id(1)
    sample = (tl.program_id(2) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(2) % kv_heads).to(tl.int64)
    place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    is_place = place < rows * group_size
    head = kv_head * group_size + tl.minimum(place // rows, group_size - 1)
    place = place % rows
    at = tl.load(index + sample * rows + place)
    flag = tl.load(flags + sample * rows + place, mask=is_place, other=0).to(tl.int32)
    is_live = (flag & 4) != 0
    row = start + at
    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM
    q_at = query + sample * stride_qb + head[:, None] * stride_qh + at[:, None] * stride_qm + width[None, :]
    q = tl.load(q_at, mask=is_live[:, None] & is_width[None, :], other=0.0)
    row_group = tl.zeros([BLOCK_M], tl.int32)
    if HAS_TABLE:
        row_group = tl.load(query_group + sample * queries + at)
    row_earlier = row_bits(earlier_bits, row_group, HAS_TABLE)
    row_later = row_bits(later_bits, row_group, HAS_TABLE)
    key += sample * stride_kb + kv_head * stride_kh
    far = sample * keys
    heads = kv_heads * group_size
    amount = amounts(flag, sample * heads + head, head_gain, is_place, HAS_HEADS)
    line = (sample * heads + head) * rows + place
    step = (tl.num_programs(2) // kv_heads).to(tl.int64) * heads * rows

    begin, stop = split * chunk, tl.minimum(split * chunk + chunk, written)
    if HAS_WINDOW:
        earliest = tl.min(tl.where(is_live, row, 2147483647 - BLOCK_N), 0) - window + 1 - first_key
        begin = tl.maximum(begin, earliest // BLOCK_N * BLOCK_N)
    if not HAS_LATER:
        stop = tl.minimum(stop, tl.max(tl.where(is_live, row, -1), 0) + 1 - first_key)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if not IS_FIRST:
        top = tl.load(settled + line, mask=is_live, other=float("-inf"))
        top = tl.where(top == float("-inf"), 0.0, top)
        keep = tl.load(settled + step + line, mask=is_live, other=1.0)
        grow = tl.load(settled + 2 * step + line, mask=is_live, other=1.0)
    text = tl.zeros([BLOCK_M], tl.float32)
    text_sink = tl.zeros([BLOCK_M], tl.float32)
    patch = tl.zeros([BLOCK_M], tl.float32)
    patch_sink = tl.zeros([BLOCK_M], tl.float32)
    spread = tl.zeros([BLOCK_M], tl.float32)
    for first in range(begin, stop, BLOCK_N):
        column = first + tl.arange(0, BLOCK_N)
        is_column = column < stop
        k_at = key + column.to(tl.int64)[None, :] * stride_kn + width[:, None]
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
            key_group + far if HAS_KEYS else None,
            earlier,
            later,
            strength,
            gain + far if HAS_GAIN else None,
            bias + far if HAS_BIAS else None,
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
        scores = tl.where(is_live[:, None], scores, float("-inf"))
        kind = column[None, :] * 0
        if MOVES:
            kind = tl.load(move_class + far + column, mask=is_column, other=0)[None, :].to(tl.int32)
        if IS_FIRST:
            above = tl.maximum(top, tl.max(scores, 1))
            # A row that has met no key yet keeps minus infinity; its weights must be 0, not NaN.
            base = tl.where(above == float("-inf"), 0.0, above)
            power = tl.math.exp2(scores - base[:, None])
            fade = tl.math.exp2(top - base)
            text *= fade
            text_sink *= fade
            patch *= fade
            patch_sink *= fade
            top = above
        else:
            power = tl.math.exp2(scores - top[:, None])
            if MOVES:
                power *= tl.where(kind == 0, 1.0, tl.where(kind == 2, grow[:, None], keep[:, None]))
            if entropy is not None:
                logarithm = tl.math.log2(tl.where(power > 0, power, 1.0))
                spread -= tl.sum(power * logarithm, 1)
            if weights is not None:
                tl.store(
                    weights + line[:, None] * keys + column[None, :],
                    power,
                    mask=is_live[:, None] & is_column[None, :],
                )
            if masses is not None:
                kind = tl.load(read_class + far + column, mask=is_column, other=0)[None, :].to(tl.int32)
        if IS_FIRST or masses is not None:
            text += tl.sum(tl.where(kind == 0, power, 0.0), 1)
            text_sink += tl.sum(tl.where(kind == 1, power, 0.0), 1)
            patch += tl.sum(tl.where(kind == 2, power, 0.0), 1)
            patch_sink += tl.sum(tl.where(kind == 3, power, 0.0), 1)

    if IS_FIRST:
        here, apart = seen + line * splits + split, step * splits
        tl.store(here + 4 * apart, top, mask=is_place)
    else:
        here, apart = masses + (line * 4) * splits + split if masses is not None else None, splits
        if entropy is not None:
            tl.store(entropy + line * splits + split, spread, mask=is_place)
    if IS_FIRST or masses is not None:
        tl.store(here, text, mask=is_place)
        tl.store(here + apart, text_sink, mask=is_place)
        tl.store(here + 2 * apart, patch, mask=is_place)
        tl.store(here + 3 * apart, patch_sink, mask=is_place)


@triton.jit(do_not_specialize=["rows", "splits", "removed_fraction", "rho", "mass_floor"])
def _settle_rows(
    seen,
    settled,
    flags,
    rows,
    splits,
    removed_fraction,
    rho,
    mass_floor,
    MOVES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Joins the splits of the first stream: log-sum-exp in units of log 2, factor of sinks, of plain patches."""
    place = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    heads = tl.num_programs(1)
    sample = tl.program_id(2).to(tl.int64)
    is_place = place < rows
    line = (sample * heads + tl.program_id(1)) * rows + place
    step = tl.num_programs(2).to(tl.int64) * heads * rows
    apart = step * splits
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for split in range(splits):
        here = seen + line * splits + split
        top = tl.maximum(top, tl.load(here + 4 * apart, mask=is_place, other=float("-inf")))
    base = tl.where(top == float("-inf"), 0.0, top)
    text = tl.zeros([BLOCK_M], tl.float32)
    text_sink = tl.zeros([BLOCK_M], tl.float32)
    patch = tl.zeros([BLOCK_M], tl.float32)
    patch_sink = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        here = seen + line * splits + split
        fade = tl.math.exp2(tl.load(here + 4 * apart, mask=is_place, other=float("-inf")) - base)
        text += fade * tl.load(here, mask=is_place, other=0.0)
        text_sink += fade * tl.load(here + apart, mask=is_place, other=0.0)
        patch += fade * tl.load(here + 2 * apart, mask=is_place, other=0.0)
        patch_sink += fade * tl.load(here + 3 * apart, mask=is_place, other=0.0)
    total = text + text_sink + patch + patch_sink
    safe = tl.where(total > 0, total, 1.0)
    tl.store(settled + line, tl.where(total > 0, top + tl.math.log2(safe), float("-inf")), mask=is_place)
    keep = tl.full([BLOCK_M], 1.0, tl.float32)
    grow = tl.full([BLOCK_M], 1.0, tl.float32)
    if MOVES:
        flag = tl.load(flags + sample * rows + place, mask=is_place, other=0)
        keep, grow, is_row, _ = row_gains(
            text_sink / safe, patch / safe, patch_sink / safe, removed_fraction, rho, mass_floor
        )
        is_row = is_row & ((flag & 2) != 0)
        keep, grow = tl.where(is_row, keep, 1.0), tl.where(is_row, grow, 1.0)
    tl.store(settled + step + line, keep, mask=is_place)
    tl.store(settled + 2 * step + line, grow, mask=is_place)
