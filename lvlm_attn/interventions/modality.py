"""What methods that change visibility share: where image tokens are, counts before and after, one table per call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.layout.prompt import PromptLayout


def is_image(layout: PromptLayout) -> Tensor:
    """`(batch, length)`: every token of an image, newlines and class tokens among them."""
    return layout.image >= 0


def count_before(is_key: Tensor) -> Tensor:
    """`(batch, length)`: how many True there are before each position, itself left out."""
    return is_key.cumsum(1) - is_key.long()


def count_after(is_key: Tensor) -> Tensor:
    """`(batch, length)`: how many True there are after each position, itself left out."""
    return is_key.sum(1, keepdim=True) - is_key.cumsum(1)


def attends_to_any(layer: Layer, is_key: Tensor) -> Tensor:
    """`(batch, length)`: positions that may attend to a True one: after it, or beside it where the mask opens both.

    In models whose own mask lets images attend ahead, every position of a sample that holds a True one counts.
    """
    if layer.call.attends_ahead:
        return is_key.any(1, keepdim=True).expand_as(is_key)
    return count_before(is_key) > 0


class Made(NamedTuple):
    """A visibility, and what to count of it for the report."""

    visibility: Visibility
    counts: tuple[Tensor, ...]


def once_per_call(layer: Layer, make: Callable[[], Made | None]) -> Visibility | None:
    """Makes a visibility at the first layer of a call and gives the same object to the others.

    Layers that get the same object share the masks made from it. The counts are added up per layer in
    `layer.stats`, where `counted` reads them.

    Args:
        layer: the layer.
        make: makes the visibility for this call, or None if plain causality holds.
    """
    made = layer.shared(once_per_call, make)
    if made is None:
        return None
    stats, index = layer.stats, layer.index
    before = stats.get(index)
    stats[index] = made.counts if before is None else tuple(a + b for a, b in zip(before, made.counts))
    return made.visibility


def counted(stats: Mapping[Any, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for a report from what `once_per_call` counted: one per layer, totals over all prompts."""
    return [
        {"layer": layer, **{name: int(value) for name, value in zip(names, stats[layer])}}
        for layer in sorted(stats)
    ]
