"""VisualSelf: image tokens stop attending to each other.

Source: Ma et al., "EE-MLLM: A Data-Efficient and Compute-Efficient Multimodal Large Language Model"
(arXiv 2408.11795). Its method section was not at hand; what is built here follows from its summary: no
self-attention among visual tokens, and an aligner made of the weights of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from lvlm_attn.interventions.checks import need_choice, need_layers
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.modality import Made, attends_to_any, counted, is_image, once_per_call
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.visibility import ALL, Visibility

MODES = ("self", "self_prefix")

PRESETS = {
    "paper": Preset(
        {"mode": "self"}, "EE-MLLM as its abstract describes it: no attention among visual tokens"
    ),
}
"""Settings by name."""


@dataclass(frozen=True)
class VisualSelf(HasPresets):
    """Composite attention: image tokens attend to themselves, in one mode also to text before them; text as always.

    In mode `"self"`, which is what EE-MLLM trains with, a softmax over one key is 1, so the output of the
    attention is the token's own value: query and key weights and rotary positions drop out, and the layer acts on
    image tokens as an aligner made of its value, output and feed-forward weights. It is computed that way. In mode
    `"self_prefix"` image tokens also attend to the text before them. A model that was not trained with the method
    parks much of an image token's weight on the beginning of the text, so this mode moves it less, and is the
    default here.

    No image attends to another one. Newline and class tokens of an image count as image. Text, generated tokens and
    samples without an image stay bit-identical in the first of the chosen layers.

    Args:
        mode: `"self"` or `"self_prefix"`; `"self+prefix"` is taken for the latter, except in text, where `+` joins
            methods.
        layers: which layers; None for all, as EE-MLLM is trained. Without training, late layers do the least
            harm; `FrozenVisual` names some by experiment.
        preset: `"auto"`, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if the mode is unknown.

    Example:
        >>> str(VisualSelf(mode="self", layers="16:"))
        'visual_self:mode=self,layers=16:'
    """

    name: ClassVar[str] = "visual_self"
    needs_image: ClassVar[bool] = True

    mode: str = "self_prefix"
    layers: Layers = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        if isinstance(self.mode, str) and self.mode == "self+prefix":
            object.__setattr__(self, "mode", "self_prefix")
        need_choice(self, "mode", MODES)
        need_layers(self)

    def visibility(self, layer: Layer) -> Visibility | None:
        """Image tokens attend to themselves, and to text before them if the mode says so."""
        return once_per_call(layer, lambda: self._make(layer)) if layer.is_prompt else None

    def _make(self, layer: Layer) -> Made:
        layout = layer.layout
        image = is_image(layout)
        lost = image if self.mode == "self_prefix" else layout.is_valid
        # A token that loses nothing stays bit-identical; it is an image key all the same.
        is_changed = image & attends_to_any(layer, lost)
        group = torch.where(is_changed, 1, torch.where(image, 2, 0))
        text = ALL if self.mode == "self_prefix" else 0
        every = (ALL, ALL, ALL)
        return Made(
            Visibility(group, earlier=(every, (text, 0, 0), every)), (is_changed[:, layer.queries].sum(),)
        )

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many image tokens attend to less."""
        return counted(stats, ("rows",))
