"""Flash attention over every row, with visibility as a table over groups.

Online softmax in fp32, one accumulator, key blocks from `blocks` so that the inner loop has no branch and
blocks nobody attends to cost nothing. What changes weights is done after it, by `rows` or `correct`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedVisibility
from lvlm_attn.kernels.triton.blocks import BlockLists, list_blocks
from lvlm_attn.kernels.triton.common import (
    Change,
    Form,
    Launcher,
    Mask,
    Place,
    dot,
    on_device,
    seen_place,
    strides_of,
)
from lvlm_attn.kernels.triton.device import Spec, edited_scores, loaded_queries, row_state, weighed
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, prefill_tile


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
    query, kv_heads = call.query, call.key.shape[1]
    batch, heads, queries, head_dim = query.shape
    if output is None:
        output = query.new_empty(batch, queries, heads, head_dim)
    tile = tile or prefill_tile(chip_of(query), head_dim, query.element_size())
    if lists is None:
        lists = list_blocks(packed, call.geometry, batch, tile.block_m, tile.block_n, query.device)
    grid = lists.order.shape[1], batch * heads, 1
    constants = (Form.of(call, packed, tile),)
    launch = Launcher(_attend_all, grid, constants, num_warps=tile.warps, num_stages=tile.stages)
    tensors = query, call.key, call.value, output
    with on_device(query):
        launch(
            (*tensors, log_sum_exp, lists.order, lists.counts),
            Change(),
            strides_of(*tensors),
            Mask.of(packed),
            Place.of(call.geometry, heads=(heads, kv_heads), splits=lists.order.shape[2]),
            call.scaling * LOG2E,
        )
    return output


@triton.jit
def _loaded(at, is_width, is_column, IS_PART: tl.constexpr, F: tl.constexpr):
    """A block of keys or values; where all columns hold one and no width is padded, without a mask."""
    if IS_PART:
        return tl.load(at, mask=is_width & is_column, other=0.0)
    elif F.head_dim == F.block_d:
        return tl.load(at)
    else:
        return tl.load(at, mask=is_width, other=0.0)


# Long because maximum, denominator and output stay in the registers of one loop.
@triton.jit
def _sweep(
    running, q, state, key, value, strides, order, begin, end, spec, F: tl.constexpr, IS_PART: tl.constexpr
):
    """Online softmax over one run of key blocks; without masks where `IS_PART` is False.

    Which block comes next is read a turn ahead and carried over, so that the copies of the next keys and values do not
    wait for it.
    """
    acc, top, total = running
    width = tl.arange(0, F.block_d)
    near = tl.arange(0, F.block_n)
    is_width = width < F.head_dim
    block = tl.load(order + begin, mask=begin < end, other=0)
    for turn in range(begin, end):
        following = tl.load(order + turn + 1, mask=turn + 1 < end, other=0)
        column = block * F.block_n + near
        # One product of 64 bits for a block, since columns times a row stride exceed 32 from 524k tokens on.
        far = (block * F.block_n).to(tl.int64)
        k_at = key + far * strides[5] + near[None, :] * strides[5] + width[:, None]
        v_at = value + far * strides[8] + near[:, None] * strides[8] + width[None, :]
        is_column = column < spec.place.written
        k = _loaded(k_at, is_width[:, None], is_column[None, :], IS_PART, F)
        if IS_PART:
            scores = edited_scores(q, k, state, column, is_column, spec, F)
            top, weights, fade = weighed(scores, top)
        else:
            scores = dot(q, k, None, F.precision)
            above = tl.maximum(top, tl.max(scores, 1) * spec.scale)
            weights = tl.math.exp2(scores * spec.scale - above[:, None])
            fade = tl.math.exp2(top - above)
            top = above
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        v = _loaded(v_at, is_width[None, :], is_column[:, None], IS_PART, F)
        acc = dot(weights.to(v.dtype), v, acc, F.precision)
        block = following
    return acc, top, total


# Long because both runs and what is written of a row stay in registers.
@triton.jit(do_not_specialize=["scale"])
def _attend_all(
    query,
    key,
    value,
    output,
    log_sum_exp,
    order,
    counts,
    change,
    strides,
    mask,
    place,
    scale,
    F: tl.constexpr,
):
    """One block of queries."""
    place = seen_place(place)
    heads = place.kv_heads * place.group
    # The last queries attend to most keys, so they go first and the short blocks fill the end.
    query_blocks = tl.num_programs(0)
    block = query_blocks - 1 - tl.program_id(0)
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    spec = Spec(mask, change, place, scale, sample)
    index = block * F.block_m + tl.arange(0, F.block_m)
    is_row = index < place.queries
    q = loaded_queries(query, strides, head, index, is_row, spec, F)
    key += sample * strides[3] + (head // place.group) * strides[4]
    value += sample * strides[6] + (head // place.group) * strides[7]
    state = row_state(index, head, is_row, spec, F)
    line = sample * query_blocks + block
    order += line * place.splits
    fulls, ends = tl.load(counts + line * 2), tl.load(counts + line * 2 + 1)
    acc = tl.zeros([F.block_m, F.block_d], tl.float32)
    top = tl.full([F.block_m], float("-inf"), tl.float32)
    running = acc, top, tl.zeros([F.block_m], tl.float32)
    running = _sweep(running, q, state, key, value, strides, order, 0, fulls, spec, F, False)
    running = _sweep(running, q, state, key, value, strides, order, fulls, ends, spec, F, True)
    acc, top, total = running
    divisor = tl.where(total > 0, total, 1.0)
    out_at = output + sample * strides[9] + index.to(tl.int64) * strides[10] + head * strides[11]
    width = tl.arange(0, F.block_d)
    is_number = is_row[:, None] & (width < F.head_dim)[None, :]
    acc = acc / divisor[:, None]
    tl.store(out_at[:, None] + width[None, :], acc.to(output.dtype.element_ty), mask=is_number)
    if log_sum_exp is not None:
        # Natural logarithm: 0.693... is log 2.
        natural = (top + tl.math.log2(divisor)) * 0.6931471805599453
        tl.store(log_sum_exp + (sample * heads + head) * place.queries + index, natural, mask=is_row)
