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
    Launcher,
    change_of,
    class_of,
    edited_scores,
    factor_of,
    form_of,
    hidden,
    mask_of,
    on_device,
    place_of,
    row_state,
    seen_place,
)
from lvlm_attn.kernels.triton.rows import SEEN, attend_rows
from lvlm_attn.kernels.triton.tiles import Tile, chip_of, split_tile


def is_readable(wanted: Readout) -> bool:
    """Whether the kernels give all that is asked for."""
    return wanted.key_class is None and not wanted.column_sums and not wanted.entropy


# Long because a launch takes many arguments.
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
    query, geometry = call.query, call.geometry
    edits = edits or PackedEdits()
    batch, heads, queries, head_dim = query.shape
    wanted.check(batch, queries)
    found = Rows.of(wanted.is_read.to(query.device))
    if found is None:
        return empty_reading(wanted, heads, geometry.keys, query.device, torch.float32)
    index = found.index.to(torch.int32).contiguous()
    rows = index.shape[1]
    seen = attend_rows(call, packed=packed, edits=edits, index=index, splits=splits, tile=tile)
    total = seen[..., 0].masked_fill(~found.is_touched[:, None], -torch.inf)
    if wanted.rows is None:
        return Reading(found.index, found.is_touched, total)
    is_mean = wanted.rows == "mean"
    shape = batch, 1 if is_mean else heads, rows, geometry.keys
    weights = torch.empty(shape, dtype=torch.float32, device=query.device)
    tile = tile or split_tile(chip_of(query), head_dim, query.element_size(), rows)
    if query.is_cuda:
        tile = tile._replace(block_n=min(tile.block_n, 32))
    form = form_of(call, packed, edits, tile)
    grid = triton.cdiv(geometry.keys, tile.block_n), triton.cdiv(rows, tile.block_m), batch * shape[1]
    constants = heads if is_mean else 1, SEEN, form
    launch = Launcher(_write_weights, grid, constants, num_warps=tile.warps, num_stages=1)
    with on_device(query):
        launch(
            (query, call.key, index, found.is_touched.contiguous(), seen, edits.key_class, weights),
            change_of(edits),
            (*query.stride()[:3], *call.key.stride()[:3]),
            mask_of(packed),
            place_of(call, edits),
            tuple(map(hidden, (rows, heads, heads // call.key.shape[1]))),
            call.scaling * LOG2E,
        )
    return Reading(found.index, found.is_touched, total, rows=weights)


# Long because the sum over heads stays in the registers of one loop.
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
    cut,
    scale,
    HEADS: tl.constexpr,
    SEEN: tl.constexpr,
    F: tl.constexpr,
):
    """One block of keys of some rows: of one head, or the mean over all `HEADS`; `cut` is rows, heads, group size."""
    place = seen_place(place)
    spec = mask, change, place, scale
    rows, heads, group_size = cut[0] >> 5, cut[1] >> 5, cut[2] >> 5
    lines = heads // HEADS
    sample = (tl.program_id(2) // lines).to(tl.int64)
    column = tl.program_id(0) * F.block_n + tl.arange(0, F.block_n)
    is_column = column < place.written
    line = tl.program_id(1) * F.block_m + tl.arange(0, F.block_m)
    is_row = line < rows
    at = tl.load(index + sample * rows + line, mask=is_row, other=0)
    is_live = is_row & (tl.load(is_read + sample * rows + line, mask=is_row, other=0) != 0)
    width = tl.arange(0, F.block_d)
    is_width = width < F.head_dim
    if key_class is not None:
        kind = class_of(key_class, column, is_column, sample, place)[None, :]
    acc = tl.zeros([F.block_m, F.block_n], tl.float32)
    for turn in range(HEADS):
        head = (tl.program_id(2) % lines + turn).to(tl.int64)
        q_at = query + sample * strides[0] + head * strides[1] + at.to(tl.int64) * strides[2]
        q = tl.load(q_at[:, None] + width[None, :], mask=is_live[:, None] & is_width[None, :], other=0.0)
        k_at = (
            key + sample * strides[3] + (head // group_size) * strides[4] + column.to(tl.int64) * strides[5]
        )
        k = tl.load(k_at[None, :] + width[:, None], mask=is_width[:, None] & is_column[None, :], other=0.0)
        state = row_state(at, head, sample, is_row, heads, spec, F)
        scores = edited_scores(q, k, place.start + at, state, column, is_column, sample, spec, F)
        here = seen + ((sample * heads + head) * rows + line) * SEEN
        total = tl.load(here, mask=is_live, other=float("-inf")) * 1.4426950408889634
        # A row without any key has no weights; minus infinity twice would be NaN.
        total = tl.where(total == float("-inf"), 0.0, total)
        power = tl.math.exp2(tl.where(is_live[:, None], scores - total[:, None], float("-inf")))
        if key_class is not None:
            text = tl.load(here + 5, mask=is_live, other=1.0)[:, None]
            text_sink = tl.load(here + 6, mask=is_live, other=1.0)[:, None]
            patch = tl.load(here + 7, mask=is_live, other=1.0)[:, None]
            patch_sink = tl.load(here + 8, mask=is_live, other=1.0)[:, None]
            power *= factor_of(kind, text, text_sink, patch, patch_sink)
        acc += power
    out_at = weights + (tl.program_id(2).to(tl.int64) * rows + line) * place.keys
    is_number = is_row[:, None] & (column < place.keys)[None, :]
    tl.store(out_at[:, None] + column[None, :], acc / HEADS, mask=is_number)
