"""Which blocks of keys a block of queries has to look at: lists, so that the attention loop has no branch.

Every query block gets its key blocks in two runs: first those every query attends to in full, which need no mask,
then those it attends to in part. Blocks nobody attends to are in neither. A list is decided from the groups that are
present in each block, 30 bits, and from the distances between the blocks.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.kernels.packing import PackedVisibility
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.triton.common import on_device

HOLE = tl.constexpr(1 << 30)


@dataclass(frozen=True)
class BlockLists:
    """The key blocks of every query block.

    Attributes:
        order: `(batch, query_blocks, key_blocks)` int32, the blocks attended to in full, then in part.
        counts: `(batch, query_blocks, 2)` int32, how many are attended to in full, and how many at all.
        block_m: queries in a block.
        block_n: keys in a block.
    """

    order: Tensor
    counts: Tensor
    block_m: int
    block_n: int


def list_blocks(
    packed: PackedVisibility, geometry: Geometry, batch: int, block_m: int, block_n: int, device: torch.device
) -> BlockLists:
    """Decides which key blocks are attended to; two small launches.

    Args:
        packed: the attention mask over groups.
        geometry: where the queries and keys stand.
        batch: number of samples.
        block_m: queries in a block.
        block_n: keys in a block.
        device: where the kernels run.
    """
    query_blocks = triton.cdiv(geometry.queries, block_m)
    key_blocks = triton.cdiv(geometry.keys, block_n)
    order = torch.empty(batch, query_blocks, key_blocks, dtype=torch.int32, device=device)
    counts = torch.empty(batch, query_blocks, 2, dtype=torch.int32, device=device)
    present: list[Tensor | None] = []
    with on_device(order):
        for groups, blocks, size, positions in (
            (packed.query_group, query_blocks, block_m, geometry.queries),
            (packed.key_group, key_blocks, block_n, geometry.keys),
        ):
            if groups is None:
                present.append(None)
                continue
            found = torch.empty(batch, blocks, dtype=torch.int32, device=device)
            _groups_present[(blocks, batch)](
                groups,
                found,
                positions,
                blocks,
                GROUPS=packed.shape.groups,
                BLOCK=triton.next_power_of_2(size),
            )
            present.append(found)
        _list_blocks[(query_blocks, batch)](
            order,
            counts,
            present[0],
            present[1],
            packed.tables,
            geometry.start,
            geometry.first_key,
            geometry.queries,
            min(geometry.keys, geometry.length - geometry.first_key),
            geometry.window,
            query_blocks,
            key_blocks,
            SHAPE=packed.shape,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            WIDTH=triton.next_power_of_2(key_blocks),
        )
    return BlockLists(order, counts, block_m, block_n)


@triton.jit(do_not_specialize=["positions", "blocks"])
def _groups_present(groups, found, positions, blocks, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """One bit per group that is present in a block; `HOLE` where a position is of none."""
    block, sample = tl.program_id(0), tl.program_id(1)
    index = block * BLOCK + tl.arange(0, BLOCK)
    group = tl.load(groups + sample.to(tl.int64) * positions + index, mask=index < positions, other=-1)
    bits = tl.max(tl.where(group < 0, HOLE, 0), 0)
    for number in range(GROUPS):
        bits = bits | (tl.max(tl.where(group == number, 1, 0), 0) << number)
    tl.store(found + sample * blocks + block, bits)


# Long because one program decides a block from all of its distances, and Triton has no structures to hand on.
@triton.jit(
    do_not_specialize=[
        "start",
        "first_key",
        "queries",
        "written",
        "window",
        "query_blocks",
        "key_blocks",
    ]
)
def _list_blocks(
    order,
    counts,
    query_groups,
    key_groups,
    tables,
    start,
    first_key,
    queries,
    written,
    window,
    query_blocks,
    key_blocks,
    SHAPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDTH: tl.constexpr,
):
    query_block, sample = tl.program_id(0), tl.program_id(1)
    block = tl.arange(0, WIDTH)
    is_block = block * BLOCK_N < written
    first_query = start + query_block * BLOCK_M
    last_query = start + tl.minimum(query_block * BLOCK_M + BLOCK_M, queries) - 1
    first = first_key + block * BLOCK_N
    last = first_key + tl.minimum(block * BLOCK_N + BLOCK_N, written) - 1

    # Distances back and ahead over all pairs of the two blocks; a side without pairs has nearest > farthest.
    back_near, back_far = tl.maximum(first_query - last, 0), last_query - first
    ahead_near, ahead_far = tl.maximum(first - last_query, 1), last - first_query
    has_back, has_ahead = back_far >= 0, ahead_far >= 1
    everywhere = block >= 0
    back_any, back_all = has_back, everywhere
    ahead_any, ahead_all = ~everywhere, ~has_ahead
    if SHAPE.lines > 0:
        of_query = tl.load(query_groups + sample * query_blocks + query_block)
        of_key = tl.load(key_groups + sample * key_blocks + block, mask=is_block, other=0)
        back_any = has_back & (back_near == 0)  # every query may attend to itself
        if SHAPE.later:
            ahead_all = everywhere
        for q in range(SHAPE.groups):
            for k in range(SHAPE.groups):
                meets = ((of_query >> q) & (of_key >> k) & 1) != 0
                reach = tl.load(tables + q * SHAPE.groups + k)
                back_any = back_any | (meets & has_back & (reach >= tl.maximum(back_near, 1)))
                back_all = back_all & (~meets | (reach >= back_far))
                if SHAPE.later:
                    reach = tl.load(tables + (SHAPE.groups + q) * SHAPE.groups + k)
                    ahead_any = ahead_any | (meets & has_ahead & (reach >= ahead_near))
                    ahead_all = ahead_all & (~meets | ~has_ahead | (reach >= ahead_far))
        back_all = back_all | ~has_back
        if SHAPE.strength:
            ahead_all = ahead_all & ~has_ahead
    if window is not None:
        back_any = back_any & (back_near < window)
        back_all = back_all & (back_far < window)
    is_read = is_block & (back_any | ahead_any)
    is_full = is_read & back_all & ahead_all & (block * BLOCK_N + BLOCK_N <= written)
    if key_groups is not None:
        bits = tl.load(key_groups + sample * key_blocks + block, mask=is_block, other=0)
        is_full = is_full & ((bits & HOLE) == 0)
        is_read = is_read & ((bits & (HOLE - 1)) != 0)
    full, part = is_full.to(tl.int32), (is_read & ~is_full).to(tl.int32)
    fulls, parts = tl.sum(full, 0), tl.sum(part, 0)
    line = sample.to(tl.int64) * query_blocks + query_block
    tl.store(order + line * key_blocks + tl.cumsum(full, 0) - 1, block, mask=is_full)
    tl.store(order + line * key_blocks + fulls + tl.cumsum(part, 0) - 1, block, mask=is_read & ~is_full)
    tl.store(counts + line * 2, fulls)
    tl.store(counts + line * 2 + 1, fulls + parts)
