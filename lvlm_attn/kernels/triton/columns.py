"""Sums of softmax weights over rows or over heads, when the log-sum-exp of every row is known; see `readout`."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.triton.common import amounts, on_device, row_bits
from lvlm_attn.kernels.triton.scores import edited_scores


def sum_over(what: Literal["rows", "heads"], shared: Mapping[str, Any]) -> Tensor:
    """Adds up weights in tiles that stay in registers: no atomics, every number written once.

    Args:
        what: `"rows"` gives `(batch, heads, keys)`, `"heads"` gives `(batch, 1, rows, keys)`.
        shared: arguments of the kernels by name, as `readout.read` makes them.
    """
    query, keys, rows = shared["query"], shared["keys"], shared["rows"]
    batch, heads = query.shape[:2]
    is_mean = what == "heads"
    shape = (batch, 1, rows, keys) if is_mean else (batch, heads, keys)
    out = torch.empty(shape, dtype=torch.float32, device=query.device)
    tiles = triton.cdiv(rows, shared["BLOCK_M"])
    grid = (triton.cdiv(keys, shared["BLOCK_N"]), tiles if is_mean else heads, batch)
    with on_device(query):
        _sum_tiles[grid](**shared, out=out, steps=heads if is_mean else tiles, OVER_HEADS=is_mean)
    return out


# Long because the sums stay in the registers of one loop.
@triton.jit(
    do_not_specialize=["scale", "start", "first_key", "queries", "keys", "written", "window", "rows", "steps"]
)
def _sum_tiles(
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
    out,
    steps,
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
    OVER_HEADS: tl.constexpr,
):
    """One block of keys: over all tiles of rows of one head, or over all heads of one tile of rows."""
    sample = tl.program_id(2).to(tl.int64)
    heads = steps if OVER_HEADS else tl.num_programs(1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_column = column < written
    width = tl.arange(0, BLOCK_D)
    is_width = width < HEAD_DIM
    far = sample * keys
    kind = column[None, :] * 0
    if MOVES:
        kind = tl.load(move_class + far + column, mask=is_column, other=0)[None, :].to(tl.int32)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for turn in range(steps):
        head = sample * 0 + (turn if OVER_HEADS else tl.program_id(1))
        place = (tl.program_id(1) if OVER_HEADS else turn) * BLOCK_M + tl.arange(0, BLOCK_M)
        is_place = place < rows
        at = tl.load(index + sample * rows + place, mask=is_place, other=0)
        flag = tl.load(flags + sample * rows + place, mask=is_place, other=0).to(tl.int32)
        is_live = (flag & 4) != 0
        row = start + at
        attends = True
        if not HAS_LATER:
            last = tl.max(tl.where(is_live, row, -1), 0)
            attends = last >= first_key + tl.program_id(0) * BLOCK_N
        if attends:
            q_at = query + sample * stride_qb + head * stride_qh + at[:, None] * stride_qm + width[None, :]
            q = tl.load(q_at, mask=is_live[:, None] & is_width[None, :], other=0.0)
            k_at = key + sample * stride_kb + (head // group_size) * stride_kh
            k_at += column.to(tl.int64)[None, :] * stride_kn + width[:, None]
            k = tl.load(k_at, mask=is_width[:, None] & is_column[None, :], other=0.0)
            row_group = tl.zeros([BLOCK_M], tl.int32)
            if HAS_TABLE:
                row_group = tl.load(query_group + sample * queries + at, mask=is_place, other=0)
            amount = amounts(flag, sample * heads + head + place * 0, head_gain, is_place, HAS_HEADS)
            scores = edited_scores(
                q,
                k,
                row,
                row_group,
                row_bits(earlier_bits, row_group, HAS_TABLE),
                row_bits(later_bits, row_group, HAS_TABLE),
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
            line = (sample * heads + head) * rows + place
            step = tl.num_programs(2).to(tl.int64) * heads * rows
            total = tl.load(settled + line, mask=is_live, other=float("-inf"))
            # A row without any key has no weights; minus infinity twice would be NaN.
            total = tl.where(total == float("-inf"), 0.0, total)
            power = tl.math.exp2(tl.where(is_live[:, None], scores - total[:, None], float("-inf")))
            if MOVES:
                keep = tl.load(settled + step + line, mask=is_live, other=1.0)
                grow = tl.load(settled + 2 * step + line, mask=is_live, other=1.0)
                power *= tl.where(kind == 0, 1.0, tl.where(kind == 2, grow[:, None], keep[:, None]))
            acc += power
    is_out = column < keys
    if OVER_HEADS:
        place = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        out_at = out + (sample * rows + place)[:, None] * keys + column[None, :]
        tl.store(out_at, acc, mask=(place < rows)[:, None] & is_out[None, :])
    else:
        tl.store(out + (sample * heads + tl.program_id(1)) * keys + column, tl.sum(acc, 0), mask=is_out)
