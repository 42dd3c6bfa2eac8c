"""What edits did to attention weights, per layer: rows changed, rows that could be, and the weight moved.

Three numbers over all heads, in fp64 where the device has it; they stay on the device of the layer.
"""

from __future__ import annotations

from functools import partial
from operator import add
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.correction import Judged
from lvlm_attn.kernels.spec import Amplification

_WAITING = "waiting to be counted"
"""Among the stats, what is known on the host of layers: changed, possible, moved."""


def counts_of(layer: Layer, device: torch.device) -> Tensor:
    """The `(3,)` counts of a layer so far; a kernel that adds to them in place is counted."""
    known: Tensor | None = layer.stats.get(layer.index)
    if known is None:
        known = layer.stats[layer.index] = torch.zeros(3, dtype=_dtype(device), device=device)
    return known


def count_amplified(layer: Layer, spec: Amplification, heads: int, device: torch.device) -> None:
    """Counts the rows whose scores an amplification changes, which moves no weight."""
    amplified = layer.call.memo.shared((_amplified, spec), partial(_amplified, spec, heads))
    _add(layer, amplified, device)


def count_moved(layer: Layer, is_row: Tensor, moved: Tensor, is_touched: Tensor) -> None:
    """Counts what a redistribution moved.

    Args:
        layer: the layer, as the intervention sees it.
        is_row: `(batch, heads, rows)`, True where weight was moved.
        moved: `(batch, heads, rows)`, the weight.
        is_touched: `(batch, queries)`, the rows where it could be.
    """
    dtype = _dtype(is_row.device)
    changed = is_row.sum(dtype=dtype)
    possible = is_touched.sum(dtype=dtype) * is_row.shape[1]
    mass = (moved.detach() * is_row).sum(dtype=dtype)
    _add(layer, torch.stack((changed, possible.to(is_row.device), mass)), is_row.device)


def count_judged(layer: Layer, judged: Judged, is_touched: Tensor, heads: int) -> None:
    """Adds what a redistribution decided to numbers on the host, which wait for `settle`.

    Args:
        layer: the layer, as the intervention sees it.
        judged: what was decided.
        is_touched: `(batch, queries)`, the rows where it could be.
        heads: number of heads.
    """
    waiting = layer.stats.setdefault(_WAITING, {})
    possible = layer.call.memo.shared((count_judged, is_touched), lambda: int(is_touched.sum()))
    before = waiting.get(layer.index, (0, 0, 0.0))
    new = sum(judged.changes), possible * heads, judged.moved
    waiting[layer.index] = tuple(map(add, before, new))


def settle(stats: dict[Any, Any]) -> None:
    """Adds up what waits to be counted, before counts are read."""
    for index, numbers in stats.pop(_WAITING, {}).items():
        known: Tensor | int = stats.get(index, 0)
        stats[index] = known + torch.tensor(numbers, dtype=torch.float64)


def count_free(layer: Layer, before: Tensor, after: Tensor) -> None:
    """Counts what a free edit changed in weights `(batch, heads, rows, keys)`: half of what differs was moved."""
    dtype = _dtype(after.device)
    differs = (after.detach() - before.detach()).abs().sum(-1, dtype=dtype)
    changed = (differs > 0).sum(dtype=dtype)
    _add(
        layer,
        torch.stack((changed, torch.full_like(changed, differs.numel()), differs.sum() / 2)),
        after.device,
    )


def _add(layer: Layer, counts: Tensor, device: torch.device) -> None:
    # A new tensor, since one that was made in inference mode cannot be written to outside it.
    layer.stats[layer.index] = counts_of(layer, device) + counts.to(device)


def _amplified(spec: Amplification, heads: int) -> Tensor:
    """Rows whose scores change, rows where they could, and no weight moved, over all heads."""
    rows = spec.is_touched.sum(1, dtype=_dtype(spec.is_touched.device))
    changed = (rows * (spec.per_head(heads) != 0).to(rows.device).sum(1)).sum()
    return torch.stack((changed, rows.sum() * heads, torch.zeros_like(changed)))


def _dtype(device: torch.device) -> torch.dtype:
    """Of counts: Apple's GPUs have no fp64."""
    return torch.float32 if device.type == "mps" else torch.float64
