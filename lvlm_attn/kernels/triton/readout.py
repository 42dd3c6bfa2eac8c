"""Rows of softmax weights, as edits left them: what recording reads, of each head or averaged over heads.

A first pass over the keys finds the log-sum-exp of every row and, where weight is moved, the factors of the key
classes (`rows`). With both known each weight is known from its score alone. The definitions are those of
`readouts.Reading`; quantities that no kernel gives are read by `readouts.read`.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import LOG2E, PackedEdits, PackedVisibility
from lvlm_attn.kernels.readouts import Reading, Readout, empty_reading
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton.common import (
    Change,
    Form,
    Launcher,
    Mask,
    Place,
    on_device,
    seen_place,
    strides_of,
)
from lvlm_attn.kernels.triton.device import (
    Spec,
    class_of,
    edited_scores,
    factor_of,
    loaded_keys,
    loaded_queries,
    row_state,
)
from lvlm_attn.kernels.triton.rows import SEEN, attend_rows
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, split_tile


def is_readable(wanted: Readout) -> bool:
    """Whether the kernels give all that is asked for."""
    return wanted.key_class is None and not wanted.column_sums and not wanted.entropy


def read(
    call: AttentionCall,
    wanted: Readout,
    *,
    packed: PackedVisibility,
    edits: PackedEdits | None = None,
    splits: int | None = None,
    tile: Tile | None = None,
) -> Reading:
    """Reads rows of the weights of an attention call.

    Args:
        call: the attention call; tensors of any strides whose last is 1, `scaling` above 0. Its values are not needed.
        wanted: which rows; `is_readable` must hold.
        packed: the attention mask over groups, from `pack_visibility`.
        edits: what is done to scores and weights, from `pack_edits`; None for nothing.
        splits: how many programs share the keys of a row, instead of what fills the device.
        tile: tile sizes instead of the chip's.

    Returns:
        What was read, in fp32.

    Raises:
        LvlmAttnError: if shapes do not belong together.
    """
    query, keys = call.query, call.geometry.keys
    edits = edits or PackedEdits()
    batch, heads, queries, head_dim = query.shape
    wanted.check(batch, queries)
    found = Rows.of(wanted.is_read.to(query.device))
    if found is None:
        return empty_reading(wanted, heads, keys, query.device, torch.float32)
    index = found.index.to(torch.int32).contiguous()
    rows = index.shape[1]
    seen = attend_rows(call, packed=packed, edits=edits, index=index, splits=splits, tile=tile)
    total = seen[..., 0].masked_fill(~found.is_touched[:, None], -torch.inf)
    if wanted.rows is None:
        return Reading(found.index, found.is_touched, total)
    shown = 1 if wanted.rows == "mean" else heads
    weights = torch.empty(batch, shown, rows, keys, dtype=torch.float32, device=query.device)
    tile = tile or split_tile(chip_of(query), head_dim, query.element_size(), rows)
    if query.is_cuda:
        tile = tile._replace(block_n=min(tile.block_n, 32))
    grid = triton.cdiv(keys, tile.block_n), triton.cdiv(rows, tile.block_m), batch * shown
    constants = heads // shown, SEEN, Form.of(call, packed, tile, signed=edits.signed)
    launch = Launcher(_write_weights, grid, constants, num_warps=tile.warps, num_stages=1)
    with on_device(query):
        launch(
            (query, call.key, index, found.is_touched.contiguous(), seen, edits.key_class, weights),
            Change.of(edits),
            strides_of(query, call.key),
            Mask.of(packed),
            Place.of(call.geometry, edits, heads=(heads, call.key.shape[1]), rows=rows),
            call.scaling * LOG2E,
        )
    return Reading(found.index, found.is_touched, total, rows=weights)


@triton.jit(do_not_specialize=["scale"])
def _write_weights(
    query,
    key,
    index,
    is_read,
    seen,
    key_class,
    weights,
    change,
    strides,
    mask,
    place,
    scale,
    HEADS: tl.constexpr,
    SEEN: tl.constexpr,
    F: tl.constexpr,
):
    """One block of keys of some rows: of one head, or the mean over all `HEADS`."""
    place = seen_place(place)
    rows, heads = place.rows, place.kv_heads * place.group
    lines = heads // HEADS
    sample = (tl.program_id(2) // lines).to(tl.int64)
    spec = Spec(mask, change, place, scale, sample)
    column = tl.program_id(0) * F.block_n + tl.arange(0, F.block_n)
    is_column = column < place.written
    line = tl.program_id(1) * F.block_m + tl.arange(0, F.block_m)
    is_row = line < rows
    at = tl.load(index + sample * rows + line, mask=is_row, other=0)
    is_live = is_row & (tl.load(is_read + sample * rows + line, mask=is_row, other=0) != 0)
    if key_class is not None:
        kind = class_of(key_class, column, is_column, spec)[None, :]
    acc = tl.zeros([F.block_m, F.block_n], tl.float32)
    for turn in range(HEADS):
        head = (tl.program_id(2) % lines + turn).to(tl.int64)
        q = loaded_queries(query, strides, head, at, is_live, spec, F)
        key_at = key + sample * strides[3] + (head // place.group) * strides[4]
        k = loaded_keys(key_at, strides[5], column, is_column, F)
        scores = edited_scores(q, k, row_state(at, head, is_row, spec, F), column, is_column, spec, F)
        here = seen + ((sample * heads + head) * rows + line) * SEEN
        total = tl.load(here, mask=is_live, other=float("-inf")) * 1.4426950408889634
        # A row without any key has no weights; minus infinity twice would be NaN.
        total = tl.where(total == float("-inf"), 0.0, total)
        power = tl.math.exp2(tl.where(is_live[:, None], scores - total[:, None], float("-inf")))
        if key_class is not None:
            keep = tl.load(here + 1, mask=is_live, other=1.0)[:, None]
            grow = tl.load(here + 2, mask=is_live, other=1.0)[:, None]
            power *= factor_of(kind, keep, grow)
        acc += power
    out_at = weights + (tl.program_id(2).to(tl.int64) * rows + line) * place.keys
    is_number = is_row[:, None] & (column < place.keys)[None, :]
    tl.store(out_at[:, None] + column[None, :], acc / HEADS, mask=is_number)
