"""PAI: pays more attention to the image, and guides away from what the text alone would say.

Source: Liu et al., "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs",
ECCV 2024 (arXiv 2407.21771), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor

from lvlm_attn.decoding.contrast import cut, guide
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Situation
from lvlm_attn.interventions.checks import need_layers, need_number
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.spec import Amplification

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request


PRESETS = {
    "readme": Preset(
        {"alpha": 0.2, "gamma": 1.1, "beta": 0.1, "layers": "2:"},
        "released README: the same command line for POPE and for CHAIR, whatever the model; beta from CFG.py",
    ),
    "script": Preset(
        {"alpha": 0.2, "gamma": 2.0, "beta": 0.1, "layers": "2:"},
        "released chair_eval.py: what it takes where the command line says nothing",
    ),
}
"""Settings by name. Nothing is published by model."""


@dataclass(frozen=True)
class PAI(HasPresets):
    """Attention to image tokens amplified, and guidance away from the text-only prompt.

    Two parts, each of which can be turned off:

    - Scores before the softmax become `s + alpha * |s|` at image tokens, in all heads, for the prompt's last token
      and every generated one. `alpha=0` turns it off.
    - Next-token log-probabilities become `gamma * (log p - log q) + log q`, where q is what the model says to the
      prompt without its images, its attention left alone; tokens less than `beta` times as likely as the likeliest
      are cut. The prompt without images rides in the same batch. `gamma=1` turns it off, and then PAI acts in
      plain `model.generate` as well; otherwise it needs `lvlm.generate`.

    Image tokens are taken out alone: markers around them stay, as in `VHR`. Samples without an image keep their
    logits. `alpha=0, gamma=1` changes nothing.

    Args:
        alpha: gain on the size of scores at image tokens. The released README takes 0.2.
        gamma: strength of the guidance. The released README takes 1.1, the script's default is 2.
        beta: for the cut, as part of the guidance; 0 keeps all tokens. The released code takes 0.1.
        layers: which layers amplify; None is the paper's choice, all but the first two (all, in models of up to
            two).
        preset: `"auto"`, which is `"readme"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(PAI(alpha=0.5, gamma=1, layers="2:"))
        'pai:alpha=0.5,gamma=1.0,layers=2:'
    """

    name: ClassVar[str] = "pai"
    needs_image: ClassVar[bool] = True

    alpha: float = 0.2
    gamma: float = 1.1
    beta: float = 0.1
    layers: Layers = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "alpha", least=0)
        need_number(self, "gamma", least=0)
        need_number(self, "beta", least=0, most=1)
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether neither part does anything."""
        return self.alpha == 0 and self.gamma == 1

    def needs_request(self) -> bool:
        """Only guidance needs a second view."""
        return self.gamma != 1

    def default_layers(self, target: Target) -> Layers:
        """The paper's choice."""
        return "2:" if target.layers > 2 else None

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """No layer without amplification."""
        return super().layers_at(site, target) if self.alpha else ()

    def refuse(self, situation: Situation) -> str | None:
        """Where a prompt in pieces ends is not known when a piece is processed."""
        if situation == Situation.CHUNKED_PREFILL and self.alpha:
            return (
                "PAI amplifies attention at the prompt's last token, so the prompt must be processed in one pass; pass "
                "prefill_chunk_size=None."
            )
        return None

    def reweigh(self, layer: Layer) -> Amplification | None:
        """Amplifies the image tokens for the last prompt token and generated ones."""
        if layer.is_prompt or layer.call.queries > 1:
            return layer.shared("amplification", lambda: self._amplification(layer))
        # The same at every token of an answer, and so the same object, for which paths prepare once.
        prompt, kept = layer.call.prompt, layer.memory.get("decoding")
        if kept is None or kept[0] is not prompt:
            kept = layer.memory["decoding"] = prompt, self._amplification(layer)
        return cast("Amplification | None", kept[1])

    def _amplification(self, layer: Layer) -> Amplification | None:
        layout = layer.layout
        if not any(layout.grids):
            return None
        positions = torch.arange(layout.length, device=layout.device)
        is_row = layout.is_generated | (positions == layout.last[:, None])
        is_touched = (is_row & layout.has_image[:, None])[:, layer.queries]
        return Amplification(is_touched, gain=(layout.is_patch | layout.is_filler) * self.alpha)

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: rows of the attention whose image scores were amplified."""
        layers = sorted(key for key in stats if isinstance(key, int))
        return [{"layer": layer, "rows_amplified": int(stats[layer][0])} for layer in layers]

    def views(self, request: Request) -> Sequence[Request]:
        """The prompts without their images."""
        if self.gamma == 1 or not bool(request.layout.has_image.any()):
            return ()
        return (request.without_images(),)

    def fuse(self, main: Tensor, views: Sequence[Tensor], step: int) -> Tensor:
        """Guides away from the text-only view at plausible tokens."""
        return cut(guide(main, views[0], self.gamma), main, self.beta)
