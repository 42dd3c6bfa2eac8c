"""Attention with redistribution as loops over samples, heads, rows and keys: the oracle of the kernels."""

import math

import torch
from torch import Tensor

TEXT, TEXT_SINK, PATCH, PATCH_SINK = range(4)


def may_read(spec, sample: int, row: int, column: int) -> bool:
    """The causal rule, the window, padding, and columns that are dropped or not yet written."""
    query = spec.start + row
    key = column + max(spec.start + spec.queries - spec.keys, 0)
    if key > query:
        return False
    if spec.window is not None and query - key >= spec.window:
        return False
    return spec.is_valid is None or bool(spec.is_valid[sample, key])


def softmax_row(q: Tensor, k: Tensor, scaling: float, readable: list[bool]) -> list[float]:
    """Weights of one query."""
    scores = [float((q * key).sum()) * scaling for key in k]
    seen = [score for score, ok in zip(scores, readable) if ok]
    if not seen:
        return [0.0] * len(scores)
    top = max(seen)
    powers = [math.exp(score - top) if ok else 0.0 for score, ok in zip(scores, readable)]
    return [power / sum(powers) for power in powers]


def move(row: list[float], classes: list[int], spec) -> list[float]:
    """One row of weights after redistribution."""
    plain = sum(a for a, c in zip(row, classes) if c == PATCH)
    image = sum(a for a, c in zip(row, classes) if c in (PATCH, PATCH_SINK))
    sinks = sum(a for a, c in zip(row, classes) if c in (TEXT_SINK, PATCH_SINK))
    if plain <= 0 or image < spec.mass_floor or plain / image < spec.rho:
        return row
    lost = spec.removed_fraction
    gain = {TEXT: 1.0, TEXT_SINK: 1 - lost, PATCH: 1 + lost * sinks / plain, PATCH_SINK: 1 - lost}
    return [a * gain[c] for a, c in zip(row, classes)]


def weights(query: Tensor, key: Tensor, scaling: float, geometry, redistribution=None) -> Tensor:
    """`(batch, heads, queries, keys)`."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    out = query.new_zeros(batch, heads, queries, key.shape[2])
    first = max(geometry.start + geometry.queries - geometry.keys, 0)
    for b in range(batch):
        for row in range(queries):
            readable = [may_read(geometry, b, row, column) for column in range(geometry.keys)]
            for h in range(heads):
                line = softmax_row(query[b, h, row], key[b, h // group], scaling, readable)
                if redistribution is not None and bool(redistribution.is_touched[b, row]):
                    known = redistribution.key_class[b].tolist()
                    places = range(first, first + geometry.keys)
                    classes = [known[p] if p < len(known) else TEXT for p in places]
                    line = move(line, classes, redistribution)
                out[b, h, row] = query.new_tensor(line)
    return out


def outputs(weights: Tensor, value: Tensor) -> Tensor:
    """`(batch, heads, queries, head_dim)`."""
    group = weights.shape[1] // value.shape[1]
    return torch.stack([weights[:, h] @ value[:, h // group] for h in range(weights.shape[1])], dim=1)
