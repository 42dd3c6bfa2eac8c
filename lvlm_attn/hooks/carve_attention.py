"""CARVEAttention: CARVE's contrast applied to the attention instead of the pixels. Ours; experimental.

The contrast is that of Ge et al., "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning",
arXiv 2509.06461. Weighing attention by it, instead of asking about a cut-out, is not in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_choice, need_layers, need_number, need_whole, need_words
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.kernels.spec import Amplification
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.contrast import GENERAL, ContrastMap, Mode, contrast_maps
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.reading import scaled_layers

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request

_LEAST = 1e-6  # smallest contrast relative to the largest, so that its logarithm is finite


@dataclass(frozen=True)
class CARVEAttention(Intervention):
    """Weighs the attention on patches by how much more the question attends to them than a description would.

    In the chosen layers every text position after an image multiplies its weight on patch i by
    `contrast_i ** temperature`, relative to the geometric mean over the patches of its row, and the weights are
    normalised again. The image itself stays whole, so nothing is lost where the contrast is wrong. It runs in
    `lvlm.generate(images=..., prompts=...)`; `lvlm.details["CARVEAttention"][row][image]` holds the contrast.

    Args:
        temperature: how strongly the contrast acts; 0 changes nothing.
        mode: which steps are contrasted; see `CARVE`.
        layers: which layers are contrasted and changed; None as for `CARVE`.
        steps: see `CARVE`.
        lam: see `CARVE`.
        lam_rel: see `CARVE`.
        general: see `CARVE`.

    Raises:
        LvlmAttnError: if a parameter is out of its range.
        UnsupportedError: while generating, if more rows are decoded than were asked about, as with views or
            several sequences per prompt.

    Example:
        >>> str(CARVEAttention(temperature=0.5))
        'carve_attention:temperature=0.5'
    """

    name: ClassVar[str] = "carve_attention"
    needs_image: ClassVar[bool] = True

    temperature: float = 1.0
    mode: Mode = "first"
    layers: Layers = None
    steps: int = 32
    lam: float = 1e-8
    lam_rel: float | None = None
    general: str = GENERAL

    def __post_init__(self) -> None:
        need_number(self, "temperature", least=0)
        need_choice(self, "mode", ("first", "last", "all"))
        need_whole(self, "steps", 1, 4096)
        need_number(self, "lam", least=0)
        if self.lam_rel is not None:
            need_number(self, "lam_rel", least=0)
        need_words(self, "general")
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether no weight ever changes."""
        return self.temperature == 0

    def default_layers(self, target: Target) -> Layers:
        """Layers 20 to 25 of 32, scaled to the model."""
        return scaled_layers(20, 25, target.layers)

    def rewrite(self, request: Request) -> Request:
        """Computes the contrast; the request stays as it is."""
        maps = contrast_maps(
            request,
            self.layers,  # type: ignore[arg-type]
            general=self.general,
            mode=self.mode,
            steps=self.steps,
            lam=self.lam,
            lam_rel=self.lam_rel,
        )
        request.details[self.title] = maps
        return request

    def reweigh(self, layer: Layer) -> Amplification:
        """Adds the logarithm of the contrast to the scores of the patches."""
        bias = layer.memory.get("bias")
        if bias is None:
            bias = layer.memory["bias"] = self._bias(layer.layout, layer.call.details[self.title])
        return Amplification(layer.call.text_queries(layer.layout.device), bias=bias)

    def _bias(self, layout: PromptLayout, contrasts: Sequence[Sequence[ContrastMap]]) -> Tensor:
        if layout.batch != len(contrasts):
            raise UnsupportedError(
                f"CARVEAttention contrasted {len(contrasts)} prompts, but {layout.batch} rows are decoded; use it "
                f"without methods that add views, and with num_return_sequences=1."
            )
        bias = torch.zeros(layout.kind.shape, dtype=torch.float32)
        is_patch = layout.is_patch.cpu()
        for row, images in enumerate(contrasts):
            if images:
                # Patches stand in the order of images, blocks, rows and columns.
                values = np.concatenate([block.ravel() for item in images for block in item.blocks])
                bias[row, is_patch[row]] = torch.from_numpy(log_contrast(values, self.temperature)).float()
        return bias.to(layout.device)


def log_contrast(values: Map, temperature: float) -> Map:
    """`temperature * log(values)`, shifted to mean 0; 0 everywhere if all values are 0.

    Example:
        >>> log_contrast(np.array([1.0, np.e]), 2.0).tolist()
        [-1.0, 1.0]
    """
    if values.max() <= 0:
        return np.zeros_like(values)
    logs = np.log(np.maximum(values, _LEAST * values.max()))
    result: Map = temperature * (logs - logs.mean())
    return result
