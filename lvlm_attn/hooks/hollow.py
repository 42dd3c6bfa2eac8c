"""Hollow: of image tokens, image tokens attend only to those close before them.

Source: the hollow attention of RedundancyLens (its summary; the window it uses was not at hand, so the default is
ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_layers, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.modality import (
    Made,
    count_before,
    counted,
    is_image,
    once_per_call,
)
from lvlm_attn.kernels.visibility import ALL, Visibility


@dataclass(frozen=True)
class Hollow(Intervention):
    """Hollow attention: an image token attends to all text before it and to the image tokens of a window, no others.

    The window counts positions of the sequence, the token itself included, so `window=1` is
    `VisualSelf(mode="self_prefix")` and a window of an image's length changes nothing. Text rows, and image rows
    whose window reaches the first image token, stay bit-identical in the first of the chosen layers.

    Args:
        window: how many positions back an image token attends to image tokens, itself included.
        layers: which layers; None for all. The source uses about half of them, without training.

    Raises:
        LvlmAttnError: if the window is no whole number of at least 1.

    Example:
        >>> str(Hollow(window=24, layers="16:"))
        'hollow:window=24,layers=16:'
    """

    name: ClassVar[str] = "hollow"
    needs_image: ClassVar[bool] = True

    window: int = 64
    layers: Layers = None

    def __post_init__(self) -> None:
        need_whole(self, "window", 1, remark="the token itself included")
        need_layers(self)

    def visibility(self, layer: Layer) -> Visibility | None:
        """Image tokens attend to text, and to image tokens in the window."""
        return once_per_call(layer, lambda: self._make(layer)) if layer.is_prompt else None

    def _make(self, layer: Layer) -> Made:
        image = is_image(layer.layout)
        # Image tokens at least a window back: those before the position that is window - 1 back.
        reach = min(self.window - 1, image.shape[1])
        back = torch.nn.functional.pad(count_before(image), (reach, 0))[:, : image.shape[1]]
        is_changed = image if layer.call.attends_ahead else image & (back > 0)
        group = torch.where(is_changed, 1, torch.where(image, 2, 0))
        every, near = (ALL, ALL, ALL), reach
        return Made(
            Visibility(group, earlier=(every, (ALL, near, near), every)),
            (is_changed[:, layer.queries].sum(),),
        )

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many image tokens attend to less."""
        return counted(stats, ("rows",))
