"""Stage 8: attention sinks, planted by construction.

The first token and the empty corner of a picture write a mark into one dimension of the residual stream that nothing
else writes or reads; one neuron turns the mark into a massive activation; keys read it. The idea that sinks are tokens
with a massive activation in a fixed dimension is that of Sun et al. (arXiv 2402.17762) and Kang et al.
(arXiv 2503.03321); here it is built in, so that what marks a sink is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: Name of the file beside the weights that says what was planted.
FILE = "planted.json"
AMPLIFIER_LAYER = 1
_RAMP = 4.0  # width of the marker's ramp, in the units of its two GELUs
_STEEP = 3.0  # how much of the ramp one unit of the corner's log-odds covers
_DRIVE = 3.0  # what the amplifier's neuron is driven to at a sink
_AMPLITUDE = 30.0  # activation of a sink, in RMS of its other dimensions


@dataclass(frozen=True)
class Planted:
    """What was planted in a toy.

    Attributes:
        dimension: Dimension of the residual stream that only marks write.
        units: The projector's two hidden units of the corner marker.
        neuron: The amplifier's neuron, in ``AMPLIFIER_LAYER``.
        layers: Layers whose keys attend to the mark.
        text_heads: For each layer that has some, the heads trained to look at words.
    """

    dimension: int
    units: tuple[int, int]
    neuron: int
    layers: tuple[int, ...]
    text_heads: dict[int, tuple[int, ...]]

    def write(self, folder: Path) -> None:
        """Writes ``planted.json``."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Planted:
        """Reads what ``write`` wrote."""
        raw = json.loads((folder / FILE).read_text())
        heads = {int(layer): tuple(found) for layer, found in raw.pop("text_heads").items()}
        return cls(raw["dimension"], tuple(raw["units"]), raw["neuron"], tuple(raw["layers"]), heads)


def marks(model: Any, features: Tensor, planted: Planted) -> Tensor:
    """The mark of every patch: about 1 at empty corners, about 0 elsewhere.

    Args:
        model: The toy.
        features: (batch, patches, vision width).
        planted: What was planted in it.

    Returns:
        (batch, patches).
    """
    projected: Tensor = model.model.multi_modal_projector(features)[..., planted.dimension]
    return projected


def choose(model: Any, text_heads: dict[int, tuple[int, ...]]) -> Planted:
    """Chooses the least used dimension, hidden units and neuron of a toy.

    Args:
        model: The toy.
        text_heads: For each layer the heads that are to look at words.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector
    written = sum(weight.detach().square().sum(0) for weight, _ in _writes(model))
    read = sum(weight.detach().square().sum(0) for weight in _reads(model))
    assert isinstance(written, Tensor)
    assert isinstance(read, Tensor)
    unit_use = projector.linear_1.weight.norm(dim=1) * projector.linear_2.weight.norm(dim=0)
    first, second = (int(unit) for unit in unit_use.argsort()[:2])
    mlp = text.layers[AMPLIFIER_LAYER].mlp
    use = mlp.gate_proj.weight.norm(dim=1) * mlp.up_proj.weight.norm(dim=1) * mlp.down_proj.weight.norm(dim=0)
    keyed = tuple(range(2, len(text.layers) - 1)) or (len(text.layers) - 1,)
    return Planted(int((written * read).argmin()), (first, second), int(use.argmin()), keyed, text_heads)


@torch.no_grad()
def plant(model: Any, planted: Planted, corner: nn.Linear, begin: int) -> None:
    """Writes the circuit into the weights; keys stay without the mark until ``set_keys``.

    Args:
        model: The toy.
        planted: Where.
        corner: Reads from a patch's features the log-odds that it is an empty corner.
        begin: Id of the first token.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector
    dim = planted.dimension
    for weight, _ in _writes(model):
        weight[..., dim] = 0
    for weight in _reads(model):
        weight[..., dim] = 0
    for name, weight in text.named_parameters():
        if "norm" in name:
            weight[dim] = 1
    text.embed_tokens.weight[begin, dim] = 1
    for unit, shift in zip(planted.units, (0.0, _RAMP)):
        projector.linear_1.weight[unit] = _STEEP * corner.weight[0]
        projector.linear_1.bias[unit] = _STEEP * corner.bias[0] - shift
        projector.linear_2.weight[:, unit] = 0
        projector.linear_2.weight[dim, unit] = (1 if shift == 0 else -1) / _RAMP
    mlp = text.layers[AMPLIFIER_LAYER].mlp
    mlp.gate_proj.weight[planted.neuron] = 0
    mlp.up_proj.weight[planted.neuron] = 0
    mlp.gate_proj.weight[planted.neuron, dim] = 1
    mlp.up_proj.weight[planted.neuron, dim] = 1
    mlp.down_proj.weight[:, planted.neuron] = 0


@torch.no_grad()
def set_amplifier(model: Any, planted: Planted, normed: float, other_rms: float) -> None:
    """Sets how far the amplifier lifts a mark.

    Args:
        model: The toy.
        planted: Where.
        normed: What the amplifier's neuron reads at a sink, typically.
        other_rms: RMS of the other dimensions of a sink as it leaves the layer.
    """
    drive = torch.tensor(_DRIVE)
    fired = float(nn.functional.silu(drive) * drive)
    mlp = model.model.language_model.layers[AMPLIFIER_LAYER].mlp
    mlp.gate_proj.weight[planted.neuron, planted.dimension] = _DRIVE / normed
    mlp.up_proj.weight[planted.neuron, planted.dimension] = _DRIVE / normed
    mlp.down_proj.weight[planted.dimension, planted.neuron] = _AMPLITUDE * other_rms / fired


@torch.no_grad()
def set_keys(model: Any, layer: int, group: int, direction: Tensor, dim: int) -> None:
    """Sets what the mark adds to the keys of one group of heads.

    Args:
        model: The toy.
        layer: Which layer.
        group: Which key-value head.
        direction: (head size,) before rotation.
        dim: The planted dimension.
    """
    key = model.model.language_model.layers[layer].self_attn.k_proj.weight
    size = len(direction)
    key[group * size : (group + 1) * size, dim] = direction


def hold(model: Any, planted: Planted) -> list[Any]:
    """Keeps training off the circuit: its weights get no gradient.

    Use it with no weight decay. The first token's embedding is free outside the planted dimension.

    Returns:
        Handles whose ``remove`` ends it.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector
    dim, units = planted.dimension, list(planted.units)
    mlp = text.layers[AMPLIFIER_LAYER].mlp
    masks: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def mask(weight: nn.Parameter) -> Tensor:
        return masks.setdefault(id(weight), (weight, torch.ones_like(weight)))[1]

    for weight, stored in _writes(model):
        kept = mask(stored)
        (kept if stored is weight or stored.ndim == 1 else kept.t())[..., dim] = 0
    for weight in _reads(model):
        mask(weight)[..., dim] = 0
    for name, weight in text.named_parameters():
        if "norm" in name:
            mask(weight)[dim] = 0
    mask(projector.linear_1.weight)[units] = 0
    mask(projector.linear_1.bias)[units] = 0
    mask(projector.linear_2.weight)[:, units] = 0
    mask(mlp.gate_proj.weight)[planted.neuron] = 0
    mask(mlp.up_proj.weight)[planted.neuron] = 0
    mask(mlp.down_proj.weight)[:, planted.neuron] = 0
    return [
        weight.register_hook(lambda gradient, kept=kept: gradient * kept)  # type: ignore[no-untyped-call]
        for weight, kept in masks.values()
    ]


def _writes(model: Any) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """What writes to the residual stream, with its last dimension the stream's, and the parameter itself."""
    text, projector = model.model.language_model, model.model.multi_modal_projector
    yield text.embed_tokens.weight, text.embed_tokens.weight
    for linear in (projector.linear_2, *_writers(text)):
        yield linear.weight.t(), linear.weight
        if linear.bias is not None:
            yield linear.bias[None], linear.bias


def _writers(text: Any) -> Iterator[nn.Linear]:
    for layer in text.layers:
        yield layer.self_attn.o_proj
        yield layer.mlp.down_proj


def _reads(model: Any) -> Iterator[nn.Parameter]:
    """What reads the residual stream, with its last dimension the stream's."""
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            yield linear.weight
    yield model.lm_head.weight
