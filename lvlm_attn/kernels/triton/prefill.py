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
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.blocks import BlockLists, list_blocks
from lvlm_attn.kernels.triton.common import (
    Change,
    Launcher,
    dot,
    edited_scores,
    form_of,
    hidden,
    mask_of,
    on_device,
    place_of,
    row_state,
    seen_place,
)
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
    query, key, value = call.query, call.key, call.value
    batch, heads, queries, head_dim = query.shape
    if output is None:
        output = query.new_empty(batch, queries, heads, head_dim)
    tile = tile or prefill_tile(chip_of(query), head_dim, query.element_size())
    if lists is None:
        lists = list_blocks(packed, call.geometry, batch, tile.block_m, tile.block_n, query.device)
    form = form_of(call, packed, PackedEdits(), tile)
    grid = lists.order.shape[1], batch * heads, 1
    launch = Launcher(_attend_all, grid, (form,), num_warps=tile.warps, num_stages=tile.stages)
    with on_device(query):
        launch(
            (query, key, value, output, log_sum_exp, lists.order, lists.counts),
            Change(),
            sum((tensor.stride()[:3] for tensor in (query, key, value, output)), ()),
            mask_of(packed),
            place_of(call, PackedEdits()),
            tuple(map(hidden, (lists.order.shape[2], heads, heads // key.shape[1]))),
            call.scaling * LOG2E,
        )
    return output


# Long because maximum, denominator and output stay in the registers of one loop.
@triton.jit
def _sweep(
    running,
    q,
    key,
    value,
    strides,
    order,
    begin,
    end,
    row,
    state,
    sample,
    spec,
    F: tl.constexpr,
    IS_PART: tl.constexpr,
):
    """Online softmax over one run of key blocks; without masks where `IS_PART` is False.

    Which block comes next is read a turn ahead and carried over, so that the copies of the next keys and values do not
    wait for it.
    """
    acc, top, total = running
    scale = spec[3]
    width = tl.arange(0, F.block_d)
    near = tl.arange(0, F.block_n)
    block = tl.load(order + begin, mask=begin < end, other=0)
    for turn in range(begin, end):
        following = tl.load(order + turn + 1, mask=turn + 1 < end, other=0)
        column = block * F.block_n + near
        # One product of 64 bits for a block, since columns times a row stride exceed 32 from 524k tokens on.
        far = (block * F.block_n).to(tl.int64)
        k_at = key + far * strides[5] + near[None, :] * strides[5] + width[:, None]
        v_at = value + far * strides[8] + near[:, None] * strides[8] + width[None, :]
        is_column = column < spec[2].written
        if IS_PART:
            k = tl.load(k_at, mask=(width < F.head_dim)[:, None] & is_column[None, :], other=0.0)
        elif F.head_dim == F.block_d:
            k = tl.load(k_at)
        else:
            k = tl.load(k_at, mask=(width < F.head_dim)[:, None], other=0.0)
        if IS_PART:
            scores = edited_scores(q, k, row, state, column, is_column, sample, spec, F)
            above = tl.maximum(top, tl.max(scores, 1))
            # A row that has met no key yet keeps minus infinity; its weights must be 0, not NaN.
            base = tl.where(above == float("-inf"), 0.0, above)
            weights = tl.math.exp2(scores - base[:, None])
        else:
            scores = dot(q, k, None, F.precision)
            above = tl.maximum(top, tl.max(scores, 1) * scale)
            base = above
            weights = tl.math.exp2(scores * scale - base[:, None])
        fade = tl.math.exp2(top - base)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        if IS_PART:
            v = tl.load(v_at, mask=is_column[:, None] & (width < F.head_dim)[None, :], other=0.0)
        elif F.head_dim == F.block_d:
            v = tl.load(v_at)
        else:
            v = tl.load(v_at, mask=(width < F.head_dim)[None, :], other=0.0)
        acc = dot(weights.to(v.dtype), v, acc, F.precision)
        top = above
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
    cut,
    scale,
    F: tl.constexpr,
):
    """One block of queries; `cut` is the number of key blocks, of heads, and of query heads that share keys."""
    place = seen_place(place)
    spec = mask, change, place, scale
    key_blocks, heads, group_size = cut[0] >> 5, cut[1] >> 5, cut[2] >> 5
    # The last queries attend to most keys, so they go first and the short blocks fill the end.
    query_blocks = tl.num_programs(0)
    block = query_blocks - 1 - tl.program_id(0)
    sample = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    index = block * F.block_m + tl.arange(0, F.block_m)
    width = tl.arange(0, F.block_d)
    is_row = index < place.queries
    is_number = is_row[:, None] & (width < F.head_dim)[None, :]

    q_at = query + sample * strides[0] + head * strides[1] + index.to(tl.int64) * strides[2]
    q = tl.load(q_at[:, None] + width[None, :], mask=is_number, other=0.0)
    key += sample * strides[3] + (head // group_size) * strides[4]
    value += sample * strides[6] + (head // group_size) * strides[7]
    state = row_state(index, head, sample, is_row, heads, spec, F)
    line = sample * query_blocks + block
    order += line * key_blocks
    fulls, ends = tl.load(counts + line * 2), tl.load(counts + line * 2 + 1)
    acc = tl.zeros([F.block_m, F.block_d], tl.float32)
    top = tl.full([F.block_m], float("-inf"), tl.float32)
    running = acc, top, tl.zeros([F.block_m], tl.float32)
    for is_part in tl.static_range(2):
        running = _sweep(
            running,
            q,
            key,
            value,
            strides,
            order,
            fulls if is_part else 0,
            ends if is_part else fulls,
            place.start + index,
            state,
            sample,
            spec,
            F,
            is_part,
        )
    acc, top, total = running
    divisor = tl.where(total > 0, total, 1.0)
    out_at = output + sample * strides[9] + index.to(tl.int64) * strides[10] + head * strides[11]
    acc = acc / divisor[:, None]
    tl.store(out_at[:, None] + width[None, :], acc.to(output.dtype.element_ty), mask=is_number)
    if log_sum_exp is not None:
        # Natural logarithm: 0.693... is log 2.
        natural = (top + tl.math.log2(divisor)) * 0.6931471805599453
        tl.store(log_sum_exp + (sample * heads + head) * place.queries + index, natural, mask=is_row)
