"""VHR: scales up the heads whose output depends on the image.

Source: He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025
(arXiv 2412.13949), sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Situation
from lvlm_attn.interventions.checks import need_flag, need_layers, need_number, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, Published, preset_field
from lvlm_attn.measures.divergence import head_divergence, last_heads, select_heads, suppress_outliers

if TYPE_CHECKING:
    pass


PRESETS = {
    "paper": Preset({"vhd_power": 1, "std_guard": False}, "paper, equations 4 and 6, read literally"),
    "code": Preset(
        {"vhd_power": 2, "std_guard": True},
        "released code, as an audited port keeps it; the reported numbers come from there",
    ),
}
"""Settings by name."""

_TABLE = "paper, implementation details; the same for all tasks"
BY_MODEL = (
    Published("LLaVA-1.5-7B", {"layers": "1,18..31", "alpha": 2.0}, _TABLE),
    Published("LLaVA-NeXT-7B", {"layers": "1,18..31", "alpha": 2.0}, _TABLE),
)
"""What is taken by itself: the same layers, scaled to the depth of other models."""


@dataclass(frozen=True)
class VHR(HasPresets):
    """Vision-aware head reinforcement.

    A head's divergence is how far its output at the last prompt token changes when the images are taken out of
    the prompt. Layer by layer in one prefill, the heads above the layer's median are scaled by `alpha`, for
    every position of the prompt and every generated token; layers are judged with the earlier ones already
    scaled. Heads are chosen per sample and stay chosen until the next prompt, also over further turns that
    reuse the cache. One text-only pass per prompt is added; samples without an image stay bit-identical.

    Args:
        alpha: factor on the chosen heads. The paper uses 2 for all models; above 3 the text degenerates.
        layers: which layers; None is the paper's choice, layer 1 and the last 14 of 32, scaled to the model.
        outlier_filter: drop heads whose divergence and text-only output are both more than one standard
            deviation above the mean of their layer (the paper's equation 6).
        std_guard: apply that filter only in layers whose divergences have a standard deviation above 1, as
            the released code does; the paper has no such rule.
        vhd_power: 2 for squared distances as in the released code, 1 for distances as in the paper. Without
            the outlier filter both choose the same heads.
        preset: `"auto"`, which has the layers of the paper's table for its models, or a name of `PRESETS`, for
            parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(VHR(alpha=3, layers=[1, 18, 19, 20]))
        'vhr:alpha=3.0,layers=[1,18..20]'
    """

    name: ClassVar[str] = "vhr"
    needs_image: ClassVar[bool] = True

    alpha: float = 2.0
    layers: Layers = None
    outlier_filter: bool = True
    std_guard: bool = True
    vhd_power: int = 2
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    by_model: ClassVar[Sequence[Published]] = BY_MODEL

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "alpha", least=0, remark="1 changes nothing")
        need_whole(self, "vhd_power", 1, 2, remark="2 for squared distances, 1 for distances")
        need_flag(self, "outlier_filter")
        need_flag(self, "std_guard")
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether no head is ever scaled."""
        return self.alpha == 1

    def default_layers(self, target: Target) -> Layers:
        """The paper's choice, scaled to the model."""
        return default_layers(target.layers)

    def refuse(self, situation: Situation) -> str | None:
        """Chunked prefill cannot be done exactly."""
        if situation == Situation.CHUNKED_PREFILL:
            return (
                "VHR chooses heads at the last prompt token and scales them for the whole prompt, so the prompt "
                "must be processed in one pass; pass prefill_chunk_size=None."
            )
        return None

    def begin(self, context: Layer) -> None:
        """Runs the prompt without its images."""
        if any(context.layout.grids):
            context.memory["text"] = context.call.text_heads(self.layers)  # type: ignore[arg-type]

    def scale_heads(self, layer: Layer, heads: Tensor) -> Tensor | None:
        """Chooses the heads of a layer in the prefill, then scales them."""
        text = layer.memory.get("text")
        if text is None:
            return None
        gains = layer.memory.get(layer.index)
        if gains is None:
            gains = layer.memory[layer.index] = self._gains(layer, heads, text[layer.index])
        return heads * gains

    def _gains(self, layer: Layer, heads: Tensor, text: Tensor) -> Tensor:
        """`(batch, 1, heads, 1)`: alpha at chosen heads, else 1."""
        image = last_heads(heads, layer.layout.last)
        text = text.to(image.device)
        divergence = head_divergence(image, text, self.vhd_power)
        if self.outlier_filter:
            kept = suppress_outliers(divergence, text, guard=self.std_guard)
        else:
            kept = divergence
        is_chosen = select_heads(kept) & layer.layout.has_image[:, None].to(image.device)
        self._count(layer, is_chosen, divergence)
        return torch.where(is_chosen, self.alpha, 1.0).to(heads.dtype)[:, None, :, None]

    @staticmethod
    def _count(layer: Layer, is_chosen: Tensor, divergence: Tensor) -> None:
        """Adds up per head how often it was chosen and how far it diverged, and the samples; no more is kept."""
        exact = torch.float32 if divergence.device.type == "mps" else torch.float64
        sums = torch.stack(
            [
                is_chosen.to(exact).sum(0),
                divergence.to(exact).sum(0),
                torch.ones_like(divergence, dtype=exact).sum(0),
            ]
        )
        before = layer.stats.get(layer.index)
        layer.stats[layer.index] = sums if before is None else before + sums

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: heads chosen per sample, which most often, and the mean divergence."""
        rows = []
        for layer, (chosen, divergence, samples) in sorted(stats.items()):
            share = chosen / samples
            rows.append(
                {
                    "layer": layer,
                    "heads_chosen": float(share.sum()),
                    "most_often": [
                        int(head) for head in share.argsort(descending=True)[:4] if share[head] > 0
                    ],
                    "mean_divergence": float((divergence / samples).mean()),
                }
            )
        return rows


def default_layers(count: int) -> tuple[int, ...]:
    """Layer 1 and the last 14 of 32, scaled to `count` layers.

    Example:
        >>> default_layers(32) == (1, *range(18, 32))
        True
    """
    last = max(round(14 / 32 * count), 1)
    return tuple(sorted({min(1, count - 1), *range(count - last, count)}))
