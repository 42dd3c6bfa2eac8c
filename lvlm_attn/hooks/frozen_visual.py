"""FrozenVisual: image tokens bypass some layers.

Source: Yuan et al., "ShortV: Efficient Multimodal Large Language Models by Freezing Visual Tokens in Ineffective
Layers", ICCV 2025 (arXiv 2504.00502); the layer lists are those of its released README.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.checks import need_layers
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers, select_layers
from lvlm_attn.interventions.modality import counted, is_image
from lvlm_attn.interventions.presets import HasPresets, Preset, Published, preset_field

# Layers as the README lists them, the least effective first.
LLAVA_7B = "31,29,30,28,0,26,27,25,24,22,23,21,2,3,20,18,17,12,19"
LLAVA_13B = "39,32,28,36,27,37,29,30,1,38,25,31,2,26,23,34,0,33,35,22,24,21,20,17"
LLAVA_NEXT_7B = "31,29,30,28,26,27,22,24,21,23,25,20,19,17,18,15,12,0,2"
LLAVA_NEXT_13B = "39,32,29,36,27,30,37,23,25,31,26,2,28,22,33,35,34,24,38,21,20,18,1,17"

_README = "released README, table of replaced layers"
BY_MODEL = (
    Published("LLaVA-1.5-7B", {"layers": LLAVA_7B}, _README, ("llava", 32)),
    Published("LLaVA-1.5-13B", {"layers": LLAVA_13B}, _README, ("llava", 40)),
    Published("LLaVA-NeXT-7B", {"layers": LLAVA_NEXT_7B}, _README, ("llava_next", 32)),
    Published("LLaVA-NeXT-13B", {"layers": LLAVA_NEXT_13B}, _README, ("llava_next", 40)),
)
"""Published lists, known by family and number of layers."""

PRESETS = {
    "llava-1.5-7b": Preset({"layers": LLAVA_7B}, _README),
    "llava-1.5-13b": Preset({"layers": LLAVA_13B}, _README),
    "llava-next-7b": Preset({"layers": LLAVA_NEXT_7B}, _README),
    "llava-next-13b": Preset({"layers": LLAVA_NEXT_13B}, _README),
}
"""The published lists by the name of the model, for use on another one."""


@dataclass(frozen=True)
class FrozenVisual(HasPresets):
    """Frozen visual tokens: in the chosen layers image tokens leave as they entered; text attends to them as always.

    Neither attention nor feed-forward block changes them there, while their keys and values under the weights of the
    layer can still be attended to. Needs no training. Nothing is skipped: the method is for measuring what the layers
    do to image tokens; it does not save their time.

    Args:
        layers: which layers; None is the published list of the model, or, for a model without one, the layers at
            the same relative depth as those of LLaVA-1.5-7B.
        preset: `"auto"`, the published list of the model, or a name of `PRESETS` for that of another, where `layers`
            is left out.

    Raises:
        LvlmAttnError: if the layers cannot be read or the preset is unknown.

    Example:
        >>> str(FrozenVisual(layers="24:"))
        'frozen_visual:layers=24:'
    """

    name: ClassVar[str] = "frozen_visual"
    needs_image: ClassVar[bool] = True

    layers: Layers = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    by_model: ClassVar[Sequence[Published]] = BY_MODEL

    def __post_init__(self) -> None:
        self.apply_preset()
        need_layers(self)

    def default_layers(self, target: Target) -> Layers:
        """The published list for the model, or the closest there is."""
        return default_layers(target.family.name, target.layers)

    def frozen(self, layer: Layer) -> Tensor | None:
        """Image tokens of the prompt."""
        if not layer.is_prompt:
            return None
        is_frozen = is_image(layer.layout)[:, layer.queries]
        before = layer.stats.get(layer.index)
        count = is_frozen.sum()
        layer.stats[layer.index] = (count if before is None else before[0] + count,)
        return is_frozen

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many image tokens stayed as they were."""
        return counted(stats, ("frozen",))


def default_layers(family: str, count: int) -> tuple[int, ...]:
    """The published layers of a model, or those of LLaVA-1.5-7B at the same relative depth.

    A layer is chosen if its middle lies in a chosen layer of the 32 when both stacks are drawn at one height.

    Example:
        >>> default_layers("qwen2_vl", 8)
        (0, 4, 5, 6, 7)
    """
    known = next((one for one in BY_MODEL if one.key == (family, count)), None)
    if known is not None:
        return select_layers(known.settings["layers"], count, "FrozenVisual")
    least_effective = select_layers(LLAVA_7B, 32, "FrozenVisual")
    chosen = tuple(layer for layer in range(count) if int((layer + 0.5) * 32 / count) in least_effective)
    return chosen or (count - 1,)
