"""Keys and values from elsewhere that some queries attend to beside those of the sequence.

The extra keys of a sample are ordered, and every query attends to one run of them (`first` to `stop`), so that who
attends to what is two numbers per query and never a (queries, keys) matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.torch_path import Rows, additive, attend_masked, is_open


@dataclass(frozen=True)
class ExtraKeys:
    """Further keys and values for some queries of one attention call.

    With `gate` None they share one softmax with the keys of the sequence. With a number they have a softmax of
    their own, and its output is added to the head outputs, times the gate.

    Attributes:
        key: `(batch, kv_heads, extra, head_dim)`, rotated already.
        value: `(batch, kv_heads, extra, head_dim)`.
        position: `(batch, extra)`, where in the sequence each key stands, in rising order; a sliding window
            counts from there.
        first: `(batch, queries)`, the first extra key each query attends to.
        stop: `(batch, queries)`, the one after the last; a query with `stop <= first` attends to none.
        bias: added to the scores of the extra keys (natural logarithm of a weight).
        own_bias: `(batch, positions)`, added to the scores of the sequence's keys for queries that attend to extra
            ones; None for 0; later positions have 0. Minus infinity hides a key.
        gate: None, or the factor on the output of a softmax of its own.
    """

    key: Tensor
    value: Tensor
    position: Tensor
    first: Tensor
    stop: Tensor
    bias: float = 0.0
    own_bias: Tensor | None = None
    gate: float | None = None

    def touched(self, geometry: Geometry) -> Tensor | None:
        """`(batch, queries)`, True at queries that attend to extra keys; None if no query can."""
        return self.stop > self.first if self.key.shape[2] else None

    def allowed(self, rows: Rows, geometry: Geometry) -> Tensor:
        """`(batch, rows, extra)`, which extra keys some queries may attend to."""
        column = torch.arange(self.key.shape[2], device=rows.index.device)
        first = self.first.to(column.device).gather(1, rows.index)[..., None]
        stop = self.stop.to(column.device).gather(1, rows.index)[..., None]
        found = (column >= first) & (column < stop)
        if geometry.window is not None:
            query = (rows.index + geometry.start)[..., None]
            found &= self.position.to(column.device)[:, None] > query - geometry.window
        return found


def with_extra(
    call: AttentionCall, mask: Tensor | None, extras: Sequence[ExtraKeys], rows: Rows
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Appends extra keys to those of the sequence, for one softmax over all.

    Args:
        call: the attention call.
        mask: `(batch, 1 or heads, rows, keys)` of the sequence's keys, boolean or additive, or None.
        extras: what to add, each without a gate.
        rows: which queries.

    Returns:
        Keys, values and mask with the extra keys at the end. The mask is additive where a bias is not 0.
    """
    key, value, geometry = call.key, call.value, call.geometry
    if not extras:
        return key, value, mask
    keys = torch.cat([key, *(item.key.to(key) for item in extras)], 2)
    values = torch.cat([value, *(item.value.to(value) for item in extras)], 2)
    batch, count = rows.index.shape
    if mask is None:
        mask = torch.ones(batch, 1, count, key.shape[2], dtype=torch.bool, device=key.device)
    beside = [item.allowed(rows, geometry)[:, None].expand(-1, mask.shape[1], -1, -1) for item in extras]
    if mask.dtype == torch.bool and all(item.bias == 0 and item.own_bias is None for item in extras):
        return keys, values, torch.cat([mask, *beside], 3)
    dtype = call.score_dtype
    own = additive(mask, dtype).masked_fill(~is_open(mask), -torch.inf)
    for item, found in zip(extras, beside):
        if item.own_bias is not None:
            bias = geometry.to_columns(item.own_bias.to(own))[:, None, None]
            own = torch.where(found.any(-1, keepdim=True), own + bias, own)
    biases = [
        torch.full(found.shape, item.bias, dtype=dtype, device=own.device).masked_fill(~found, -torch.inf)
        for item, found in zip(extras, beside)
    ]
    total = torch.cat([own, *biases], 3)
    # A row without any key (padding) attends to all of them instead: its output is never used, but has to be finite.
    return keys, values, torch.where((total > -torch.inf).any(-1, keepdim=True), total, 0.0)


def add_gated(output: Tensor, call: AttentionCall, item: ExtraKeys) -> Tensor:
    """Adds attention to extra keys, by a softmax of their own, to head outputs.

    Args:
        output: `(batch, queries, heads, head_dim)`; queries that attend to none stay bit-identical.
        call: the attention call.
        item: the extra keys, with a gate.

    Returns:
        A new output.
    """
    query = call.query
    is_touched = item.touched(call.geometry)
    rows = None if is_touched is None else Rows.of(is_touched.to(query.device))
    if rows is None or not item.gate:
        return output
    allowed = item.allowed(rows, call.geometry)
    attends = allowed.any(-1) & rows.is_touched
    # Padding rows attend to everything, so that no softmax is empty; they are not written.
    mask = (allowed | ~attends[..., None])[:, None]
    found = attend_masked(rows.take(query), item.key.to(query), item.value.to(query), mask, call)
    found = torch.where(attends[:, None, :, None], item.gate * found, 0).transpose(1, 2).to(output.dtype)
    if rows.is_all:
        return output + found
    return output.scatter_add(1, rows.index[:, :, None, None].expand_as(found), found)
