"""The touched rows of a prefill, computed again with their edits and written over the output of plain attention.

Redistribution needs the mass of every key class before it knows what to multiply weights with. One accumulator per
class would not fit the registers, so there are two sweeps over the keys and one accumulator: the first sweep finds
the maximum, the denominator and the class masses of every row and reads no values; the second multiplies each weight
by the factor of its key's class. The rows are few and packed, whatever their places, with all query heads of a key
head in one tile; the keys are split over several programs so that few rows still fill the device. Tiles in which no
row changes (heads that do not attend to the image) skip the second sweep, and rows that stay stay bit-identical.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility
from lvlm_attn.kernels.triton.common import on_device, precision
from lvlm_attn.kernels.triton.scores import shared_arguments
from lvlm_attn.kernels.triton.sweeps import add_parts, see_rows, write_rows
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, padded_head_dim, rows_tile

AMPLIFIED, MOVED = 1, 2
"""Bits of `flags`: the scores of a row are changed, the weight of a row may be moved."""
MAX_SPLITS = 32


class RowResults(NamedTuple):
    """What was seen in the rows, before any weight was moved.

    Attributes:
        log_sum_exp: `(batch, heads, rows)` fp32, natural, of the edited scores; minus infinity in rows without
            any key.
        masses: `(batch, heads, rows, 4)` fp32, the weight on each `KeyClass`; all on the first without classes.
        is_changed: `(batch, heads, rows)` int8, 1 in rows that were written.
    """

    log_sum_exp: Tensor
    masses: Tensor
    is_changed: Tensor


def attend_rows(
    output: Tensor,
    call: AttentionCall,
    *,
    packed: PackedVisibility,
    edits: PackedEdits,
    index: Tensor,
    flags: Tensor,
    counts: Tensor | None = None,
    splits: int | None = None,
    tile: Tile | None = None,
) -> RowResults:
    """Computes some rows with their edits and writes those that change.

    Args:
        output: `(batch, queries, heads, head_dim)`; changed rows are overwritten, all else stays bit-identical.
        call: the attention call; tensors of any strides whose last is 1, `scaling` above 0.
        packed: the attention mask over groups, from `pack_visibility`.
        edits: what is done, from `pack_edits`.
        index: `(batch, rows)` int32, which query of the call each row is.
        flags: `(batch, rows)` int8, `AMPLIFIED` and `MOVED`; 0 in padding rows.
        counts: `(3,)` float64, added up in place: rows whose weight was moved, rows where it could be, and the
            weight moved; see `Redistribution`.
        splits: how many programs share the keys of a row, instead of what fills the device.
        tile: tile sizes instead of the chip's.

    Returns:
        What was seen in the rows.
    """
    query, kv_heads = call.query, call.key.shape[1]
    batch, heads, _, head_dim = query.shape
    rows = index.shape[1]
    group = heads // kv_heads
    tile = tile or rows_tile(chip_of(query), head_dim, query.element_size(), rows * group)
    tiles = triton.cdiv(rows * group, tile.block_m)
    shared = _shared(call, packed, edits, index, flags, tile)
    blocks = triton.cdiv(shared["written"], tile.block_n)
    splits = splits or splits_for(query, tiles * batch * kv_heads, blocks)
    shared |= {"splits": splits, "chunk": max(triton.cdiv(blocks, splits), 1) * tile.block_n}
    fresh: dict[str, Any] = {"dtype": torch.float32, "device": query.device}
    seen = torch.empty(splits, 5, batch, heads, rows, **fresh)
    parts = torch.empty(splits, batch, heads, rows, head_dim, **fresh) if splits > 1 else None
    result = RowResults(
        torch.empty(batch, heads, rows, **fresh),
        torch.empty(batch, heads, rows, 4, **fresh),
        torch.empty(batch, heads, rows, dtype=torch.int8, device=query.device),
    )
    with on_device(query):
        _launch_sweeps(
            (splits, tiles, batch * kv_heads), call, edits, output, seen, parts, result, counts, shared
        )
        if parts is not None:
            _launch_sum(parts, output, result, index)
    return result


def _launch_sweeps(
    grid: tuple[int, int, int],
    call: AttentionCall,
    edits: PackedEdits,
    output: Tensor,
    seen: Tensor,
    parts: Tensor | None,
    result: RowResults,
    counts: Tensor | None,
    shared: dict[str, Any],
) -> None:
    query, key, value = call.query, call.key, call.value
    see_rows[grid](query, key, seen, *query.stride()[:3], *key.stride()[:3], **shared)
    write_rows[grid](
        query,
        key,
        value,
        output,
        seen,
        parts,
        *result,
        counts,
        *query.stride()[:3],
        *key.stride()[:3],
        *value.stride()[:3],
        *output.stride()[:3],
        edits.removed_fraction,
        edits.rho,
        edits.mass_floor,
        **shared,
    )


def _shared(
    call: AttentionCall,
    packed: PackedVisibility,
    edits: PackedEdits,
    index: Tensor,
    flags: Tensor,
    tile: Tile,
) -> dict[str, Any]:
    """The arguments, by name, of both sweeps, splits aside."""
    batch, heads, _, head_dim = call.query.shape
    kv_heads, rows = call.key.shape[1], index.shape[1]
    return {
        **shared_arguments(call, packed, edits),
        "index": index,
        "flags": flags,
        "key_class": edits.key_class,
        "rows": rows,
        "total": batch * heads * rows,
        "kv_heads": kv_heads,
        "group_size": heads // kv_heads,
        "HAS_CLASS": edits.key_class is not None,
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head_dim(head_dim),
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "PRECISION": precision(call.query.dtype),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _launch_sum(parts: Tensor, output: Tensor, result: RowResults, index: Tensor) -> None:
    splits, batch, heads, rows, head_dim = parts.shape
    add_parts[(triton.cdiv(rows, 4), heads, batch)](
        parts,
        output,
        result.is_changed,
        index,
        *output.stride()[:3],
        rows,
        splits,
        batch * heads * rows,
        HEAD_DIM=head_dim,
        BLOCK_D=padded_head_dim(head_dim),
        BLOCK_M=4,
        num_warps=4,
    )


def splits_for(query: Tensor, programs: int, blocks: int) -> int:
    """How many programs share the keys of a row: enough to fill the device twice, none with less than 4 blocks."""
    if not query.is_cuda:
        return 1
    processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    return max(min(-(-2 * processors // programs), blocks // 4, MAX_SPLITS), 1)
