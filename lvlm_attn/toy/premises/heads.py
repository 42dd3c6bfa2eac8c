"""Premise 2: some heads depend on the picture and others do not, and the former matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.measures.diagnostics import vhd
from lvlm_attn.toy.premises.asking import Asked, Row, accuracy, batches
from lvlm_attn.wrapping import wrap

_ABLATED = 6  # a quarter of the heads
_DRAWS = 4


@dataclass(frozen=True)
class _Without(Intervention):
    """Sets the output of some heads to zero."""

    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    layers: Layers = None

    def scale_heads(self, layer: Layer, heads: Tensor) -> Tensor:
        kept = heads.clone()
        kept[:, :, list(self.heads.get(layer.index, ()))] = 0
        return kept


def bimodality(values: Tensor) -> float:
    """Sarle's coefficient, corrected for few values: 5/9 for a uniform distribution, more for two modes."""
    count = len(values)
    centred = (values - values.mean()) / values.std(correction=0)
    skew = centred.pow(3).mean() * (count * (count - 1)) ** 0.5 / (count - 2)
    excess = centred.pow(4).mean() - 3
    kurtosis = (count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * excess + 6)
    bound = 3 * (count - 1) ** 2 / ((count - 2) * (count - 3))
    return float((skew**2 + 1) / (kurtosis + bound))


def measure(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """Bimodality of vision-aware head divergence, and what ablating heads costs."""
    inputs_of = batches(processor, [item.scene.image for item in asked], [item.text for item in asked])
    found = torch.cat([vhd(model, dict(inputs)).vhd for inputs in inputs_of[:4]]).mean(0)
    order = found.flatten().argsort(descending=True).tolist()
    heads = found.shape[1]
    coefficient = bimodality(found.flatten().clamp(min=1e-9).log())

    def without(chosen: Sequence[int]) -> float:
        ablated: dict[int, list[int]] = {}
        for flat in chosen:
            ablated.setdefault(flat // heads, []).append(flat % heads)
        with wrap(model, _Without(ablated)):
            return accuracy(model, processor, asked)

    generator = torch.Generator().manual_seed(0)
    others = torch.tensor(order[_ABLATED:])
    draws = [
        others[torch.randperm(len(others), generator=generator)[:_ABLATED]].tolist() for _ in range(_DRAWS)
    ]
    bare = accuracy(model, processor, asked)
    high, low = without(order[:_ABLATED]), without(order[-_ABLATED:])
    random = sum(map(without, draws)) / _DRAWS
    return [
        Row(
            "Heads: VHD separates two kinds",
            f"bimodality {coefficient:.2f} of log VHD over {len(order)} heads; from {found.min():.2g} to "
            f"{found.max():.2g}",
            "above 0.56, a uniform distribution's",
            coefficient > 5 / 9,
        ),
        Row(
            "Heads: those of high VHD carry the answer",
            f"accuracy {bare:.1%}; without the {_ABLATED} highest {high:.1%}, the {_ABLATED} lowest {low:.1%}, "
            f"{_ABLATED} random others {random:.1%}",
            "highest cost at least twice the others'",
            bare - high >= 2 * max(bare - low, bare - random, 0.01),
        ),
    ]
