"""Flash attention over every row, with visibility as a table over groups: the path of calls without touched rows.

Online softmax in fp32, one accumulator, key blocks from `blocks` so that the inner loop has no branch and
blocks nobody attends to cost nothing. What changes weights is done by `rows` after it.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedVisibility
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.triton.blocks import BlockLists, list_blocks
from lvlm_attn.kernels.triton.common import ahead_bias, dot, may_attend, on_device, precision, row_bits
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, padded_head_dim, prefill_tile


def attend_all(
    call: AttentionCall,
    *,
    packed: PackedVisibility,
    lists: BlockLists | None = None,
    output: Tensor | None = None,
    log_sum_exp: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Computes attention for every query.

    Args:
        call: the attention call; tensors of any strides whose last is 1, `scaling` above 0.
        packed: the attention mask over groups, from `pack_visibility`.
        lists: the key blocks, from `list_blocks` with the same tile; made here if None.
        output: `(batch, queries, heads, head_dim)` to write into; every number of it is overwritten.
        log_sum_exp: `(batch, heads, queries)` fp32, contiguous, to write the natural logarithm of the softmax's
            denominator into, minus infinity in rows without any key.
        tile: tile sizes instead of the chip's.

    Returns:
        The output; 0 in rows without any key.
    """
    query = call.query
    batch, heads, queries, head_dim = query.shape
    if output is None:
        output = query.new_empty(batch, queries, heads, head_dim)
    tile = tile or prefill_tile(chip_of(query), head_dim, query.element_size())
    if lists is None:
        lists = list_blocks(packed, call.geometry, batch, tile.block_m, tile.block_n, query.device)
    with on_device(query):
        _launch(call, packed, lists, output, log_sum_exp, tile)
    return output


def _launch(
    call: AttentionCall,
    packed: PackedVisibility,
    lists: BlockLists,
    output: Tensor,
    log_sum_exp: Tensor | None,
    tile: Tile,
) -> None:
    query, key, value, geometry = call.query, call.key, call.value, call.geometry
    batch, heads, queries, head_dim = query.shape
    _attend_all[(lists.order.shape[1], batch * heads)](
        query,
        key,
        value,
        output,
        log_sum_exp,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *output.stride()[:3],
        lists.order,
        lists.counts,
        packed.query_group,
        packed.key_group,
        packed.earlier_bits,
        packed.later_bits,
        packed.earlier,
        packed.later,
        packed.bias,
        call.scaling * LOG2E,
        geometry.start,
        geometry.first_key,
        queries,
        geometry.keys,
        min(geometry.keys, geometry.length - geometry.first_key),
        geometry.window or 0,
        lists.order.shape[2],
        heads,
        heads // key.shape[1],
        HEAD_DIM=head_dim,
        BLOCK_D=padded_head_dim(head_dim),
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        **flags(packed, geometry),
        PRECISION=precision(query.dtype),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def flags(packed: PackedVisibility, geometry: Geometry) -> dict[str, int | bool]:
    """The compile-time switches that follow from the attention mask over groups."""
    return {
        "GROUPS": packed.groups,
        "HAS_KEYS": packed.key_group is not None,
        "HAS_TABLE": packed.has_table,
        "HAS_LATER": packed.has_later,
        "REACHES": packed.reaches,
        "HAS_STRENGTH": packed.has_strength,
        "HAS_WINDOW": geometry.window is not None,
    }


# Long because maximum, denominator and output stay in the registers of one loop.
@triton.jit
def _sweep(
    acc,
    top,
    total,
    q,
    key,
    value,
    stride_kn,
    stride_vn,
    order,
    begin,
    end,
    row,
    row_group,
    row_earlier,
    row_later,
    key_group,
    earlier,
    later,
    bias,
    scale,
    first_key,
    keys,
    written,
    window,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUPS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_LATER: tl.constexpr,
    REACHES: tl.constexpr,
    HAS_STRENGTH: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    IS_PART: tl.constexpr,
):
    """Online softmax over one run of key blocks; without masks where `IS_PART` is False."""
    width = tl.arange(0, BLOCK_D)
    for place in range(begin, end):
        column = tl.load(order + place) * BLOCK_N + tl.arange(0, BLOCK_N)
        k_at = key + column[None, :] * stride_kn + width[:, None]
        v_at = value + column[:, None] * stride_vn + width[None, :]
        if IS_PART:
            k = tl.load(k_at, mask=(width < HEAD_DIM)[:, None] & (column < keys)[None, :], other=0.0)
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(k_at)
        else:
            k = tl.load(k_at, mask=(width < HEAD_DIM)[:, None], other=0.0)
        scores = dot(q, k, None, PRECISION)
        if IS_PART:
            scores = scores * scale
            position = first_key + column
            group = row_group
            if HAS_KEYS:
                group = tl.load(key_group + column, mask=column < keys, other=-1)
            if HAS_STRENGTH:
                scores += ahead_bias(row, position, row_group, group, bias)
            allowed = may_attend(
                row,
                position,
                row_group,
                row_earlier,
                row_later,
                group,
                earlier,
                later,
                window,
                GROUPS,
                HAS_KEYS,
                HAS_TABLE,
                HAS_LATER,
                REACHES,
                HAS_WINDOW,
            )
            scores = tl.where(allowed & (column < written)[None, :], scores, float("-inf"))
            above = tl.maximum(top, tl.max(scores, 1))
            # A row that has met no key yet keeps minus infinity; its weights must be 0, not NaN.
            base = tl.where(above == float("-inf"), 0.0, above)
            weights = tl.math.exp2(scores - base[:, None])
        else:
            above = tl.maximum(top, tl.max(scores, 1) * scale)
            base = above
            weights = tl.math.exp2(scores * scale - base[:, None])
        fade = tl.math.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        if IS_PART:
            v = tl.load(v_at, mask=(column < keys)[:, None] & (width < HEAD_DIM)[None, :], other=0.0)
        elif HEAD_DIM == BLOCK_D:
            v = tl.load(v_at)
        else:
            v = tl.load(v_at, mask=(width < HEAD_DIM)[None, :], other=0.0)
        acc = dot(weights.to(v.dtype), v, acc, PRECISION)
        top = above
    return acc, top, total


# Long because it takes over forty arguments, and Triton has no structures.
@triton.jit(
    do_not_specialize=["start", "first_key", "queries", "keys", "written", "window", "key_blocks", "scale"]
)
def _attend_all(
    query,
    key,
    value,
    output,
    log_sum_exp,
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
    order,
    counts,
    query_group,
    key_group,
    earlier_bits,
    later_bits,
    earlier,
    later,
    bias,
    scale,
    start,
    first_key,
    queries,
    keys,
    written,
    window,
    key_blocks,
    heads,
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
    PRECISION: tl.constexpr,
):
    # The last queries attend to most keys, so they go first and the short blocks fill the end.
    query_blocks = tl.num_programs(0)
    block = query_blocks - 1 - tl.program_id(0)
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    index = block * BLOCK_M + tl.arange(0, BLOCK_M)
    width = tl.arange(0, BLOCK_D)
    is_row = index < queries
    row = start + index

    q_at = query + sample * stride_qb + head * stride_qh + index[:, None] * stride_qm + width[None, :]
    q = tl.load(q_at, mask=is_row[:, None] & (width < HEAD_DIM)[None, :], other=0.0)
    key += sample * stride_kb + (head // group_size) * stride_kh
    value += sample * stride_vb + (head // group_size) * stride_vh
    row_group = tl.zeros([BLOCK_M], tl.int32)
    if HAS_TABLE:
        row_group = tl.load(query_group + sample * queries + index, mask=is_row, other=0)
    row_earlier = row_bits(earlier_bits, row_group, HAS_TABLE)
    row_later = row_bits(later_bits, row_group, HAS_TABLE)
    if HAS_KEYS:
        key_group += sample * keys

    line = sample * query_blocks + block
    order += line * key_blocks
    fulls, ends = tl.load(counts + line * 2), tl.load(counts + line * 2 + 1)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for is_part in tl.static_range(2):
        acc, top, total = _sweep(
            acc,
            top,
            total,
            q,
            key,
            value,
            stride_kn,
            stride_vn,
            order,
            fulls if is_part else 0,
            ends if is_part else fulls,
            row,
            row_group,
            row_earlier,
            row_later,
            key_group,
            earlier,
            later,
            bias,
            scale,
            first_key,
            keys,
            written,
            window,
            HEAD_DIM,
            BLOCK_D,
            BLOCK_N,
            GROUPS,
            HAS_KEYS,
            HAS_TABLE,
            HAS_LATER,
            REACHES,
            HAS_STRENGTH,
            HAS_WINDOW,
            PRECISION,
            is_part,
        )
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    out_at = output + sample * stride_ob + head * stride_oh + index.to(tl.int64)[:, None] * stride_om
    tl.store(
        out_at + width[None, :],
        acc.to(output.dtype.element_ty),
        mask=is_row[:, None] & (width < HEAD_DIM)[None, :],
    )
    if log_sum_exp is not None:
        # Natural logarithm: 0.693... is log 2.
        natural = (top + tl.math.log2(tl.where(total > 0, total, 1.0))) * 0.6931471805599453
        tl.store(log_sum_exp + (sample * heads + head) * queries + index, natural, mask=is_row)
