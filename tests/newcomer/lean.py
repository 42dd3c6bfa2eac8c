"""A method as a reader of CONTRIBUTING writes it."""

from dataclasses import dataclass
from typing import ClassVar

from lvlm_attn.interventions import Amplification, Intervention, need_layers, need_number


@dataclass(frozen=True)
class Lean(Intervention):
    """Text after the image leans on the image, and away from the system prompt.

    Args:
        image: factor on the scores of image tokens; 1 changes nothing.
        system: factor on the scores of text before the first image; 1 changes nothing.
        layers: which layers; None for all.
    """

    name: ClassVar[str] = "lean"
    image: float = 1.15
    system: float = 0.9
    layers: str | tuple[int, ...] | None = None

    def __post_init__(self):
        need_number(self, "image", least=0)
        need_number(self, "system", least=0)
        need_layers(self)

    def is_neutral(self):
        return self.image == 1 and self.system == 1

    def reweigh(self, layer):
        return layer.shared("scores", lambda: self._scores(layer))

    def _scores(self, layer):
        layout = layer.layout
        is_system = layout.is_text & ~layout.after_image
        gain = (self.image - 1) * (layout.image >= 0) + (self.system - 1) * is_system
        return Amplification(layer.call.text_queries(layout.device), gain.float(), signed=True)
