"""Measuring a model without changing it: sink dimensions and vision-aware head divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.measures.divergence import head_divergence, last_heads
from lvlm_attn.measures.sinks import SinkDims, find_sink_dims, known_sink_dims
from lvlm_attn.wrapping import target_of, wrap


def find_sinks(model: nn.Module, processor: Any | None = None, *, use_known: bool = True) -> SinkDims:
    """Finds the dimensions that mark attention sinks in a model.

    Args:
        model: the model.
        processor: its processor, whose tokenizer encodes the probe texts; without it fixed token ids are used.
        use_known: take published dimensions where there are some for the base model.

    Returns:
        The dimensions and how sure they are.

    Example:
        >>> find_sinks(model, processor).dims  # doctest: +SKIP
        (1415, 2533)
    """
    target = target_of(model, processor)
    known = known_sink_dims(target.config) if use_known else None
    if known is not None:
        return SinkDims(known, (), True, "known")
    return find_sink_dims(target)


@dataclass(frozen=True)
class Divergence:
    """Vision-aware head divergence of some prompts.

    Attributes:
        vhd: `(batch, layers, heads)`, how much the output of each head changes when the images are taken out.
        layers: which layer each entry of the second dimension is.
    """

    vhd: Tensor
    layers: tuple[int, ...]

    def t_vhd(self, top: int = 16) -> Tensor:
        """T-VHD (equation 5): per layer the sum over its `top` most divergent heads, summed over layers.

        Returns:
            `(batch,)`.
        """
        return self.vhd.topk(min(top, self.vhd.shape[2]), dim=2).values.sum((1, 2))


@dataclass(frozen=True)
class _Reader(Intervention):
    found: dict[int, Tensor] = field(compare=False)
    layers: Layers = None
    power: int = 2

    def begin(self, context: Layer) -> None:
        context.memory["text"] = context.call.text_heads(self.layers)  # type: ignore[arg-type]

    def scale_heads(self, layer: Layer, heads: Tensor) -> None:
        text = layer.memory["text"][layer.index]
        image = last_heads(heads, layer.layout.last)
        self.found[layer.index] = head_divergence(image, text.to(image.device), self.power)


def vhd(
    model: nn.Module,
    inputs: Any,
    *,
    generated: Tensor | None = None,
    layers: Layers = None,
    power: int = 2,
) -> Divergence:
    """Measures vision-aware head divergence at the last token, with nothing reinforced.

    Args:
        model: the model, wrapped or not; an active wrap keeps acting on the pass with the image.
        inputs: what the processor returned for the prompts.
        generated: `(batch, tokens)` an answer so far, appended to the prompt in both passes, for the
            divergence at a later token.
        layers: which layers; None for all.
        power: 2 for squared distances, 1 for distances.

    Returns:
        The divergence per sample, layer and head.

    Raises:
        LvlmAttnError: if `inputs` has no image tokens for the model to compare without.

    Example:
        >>> vhd(model, inputs).t_vhd()  # doctest: +SKIP
        tensor([41.3])
    """
    if power not in (1, 2):
        raise LvlmAttnError(f"vhd: power={power!r} must be 1 or 2.")
    if not isinstance(inputs, Mapping) or not isinstance(inputs.get("input_ids"), Tensor):
        raise LvlmAttnError(
            f"vhd: inputs={shown(inputs)} must be what the processor returns, with input_ids; build them with "
            f"processor(images=..., text=..., return_tensors='pt')."
        )
    tensors = dict(inputs)
    if generated is not None:
        tensors = _with_answer(tensors, generated)
    found: dict[int, Tensor] = {}
    with wrap(model, _Reader(found, layers, power)), torch.no_grad():
        cast("Any", model)(**tensors)
    chosen: Sequence[int] = sorted(found)
    return Divergence(torch.stack([found[layer] for layer in chosen], 1), tuple(chosen))


def _with_answer(tensors: dict[str, Any], generated: Tensor) -> dict[str, Any]:
    def add(value: Tensor, fill: Tensor) -> Tensor:
        return torch.cat((value, fill.to(value)), 1)

    result = dict(tensors)
    result["input_ids"] = add(tensors["input_ids"], generated)
    if "attention_mask" in tensors:
        result["attention_mask"] = add(tensors["attention_mask"], torch.ones_like(generated))
    for key in ("mm_token_type_ids", "token_type_ids"):
        if key in tensors:
            result[key] = add(tensors[key], torch.zeros_like(generated))
    return result
