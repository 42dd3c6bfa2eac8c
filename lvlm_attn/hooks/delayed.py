"""Delayed: text does not see the image in the first layers.

Source: the late injection of a modality in LAL ("layer-wise attention-only injection", arXiv 2506.10423), of which
this is a training-free imitation: a probe of when a model needs the image, not the method itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import DEEPEST
from lvlm_attn.interventions.modality import (
    Made,
    attends_to_any,
    counted,
    is_image,
    once_per_call,
)
from lvlm_attn.kernels.visibility import ALL, Visibility


@dataclass(frozen=True)
class Delayed(Intervention):
    """Delayed visibility: below layer `start`, no text token attends to an image token; above, all is as always.

    Holds for the question and for every generated token. Image tokens attend as always, text before the first image
    and samples without an image stay bit-identical in the first layer.

    Args:
        start: the first layer where text attends to the image; 0 changes nothing. None is a quarter of the layers,
            which is ours: the source chooses by experiment.

    Raises:
        LvlmAttnError: if `start` is no whole number of at least 0, or above the number of layers.

    Example:
        >>> str(Delayed(start=8))
        'delayed:start=8'
    """

    name: ClassVar[str] = "delayed"
    needs_image: ClassVar[bool] = True

    start: int | None = None

    def __post_init__(self) -> None:
        need_whole(
            self, "start", 0, DEEPEST, remark="the first layer where text attends to the image", or_none=True
        )

    def is_neutral(self) -> bool:
        """Whether text attends to the image from the first layer on."""
        return self.start == 0

    def fit(self, target: Target) -> Self:
        """Chooses where text begins to attend to the image."""
        start = max(target.layers // 4, 1) if self.start is None else self.start
        if start > target.layers:
            raise LvlmAttnError(
                f"Delayed: start={start} is out of range; this model has {target.layers} decoder layers, so at "
                f"most {target.layers}, with which text never attends to the image."
            )
        return dataclasses.replace(self, start=start)

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The layers below `start`."""
        return range(self.start or 0)

    def visibility(self, layer: Layer) -> Visibility:
        """Text attends to no image token."""
        visibility = once_per_call(layer, lambda: self._make(layer))
        assert visibility is not None
        return visibility

    def _make(self, layer: Layer) -> Made:
        image = is_image(layer.layout)
        is_changed = layer.layout.is_text & attends_to_any(layer, image)
        group = torch.where(is_changed, 0, torch.where(image, 1, 2))
        every = (ALL, ALL, ALL)
        return Made(
            Visibility(group, earlier=((ALL, 0, ALL), every, every)), (is_changed[:, layer.queries].sum(),)
        )

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many text tokens did not see an image before them."""
        return counted(stats, ("rows",))
