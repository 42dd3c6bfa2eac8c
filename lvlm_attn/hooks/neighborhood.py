"""Neighborhood: a patch attends to the patches around it on the image grid.

Source: Hassani et al., "Neighborhood Attention Transformer" (NATTEN, CVPR 2023), in the causal form of a language
model: of the neighbours, those that come before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.checks import need_layers, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.modality import Made, counted, once_per_call
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.layout.prompt import PromptLayout


@dataclass(frozen=True)
class Neighborhood(Intervention):
    """Neighborhood attention: a patch attends to earlier patches at most k // 2 steps away in row and in column.

    A step is `dilation` rows or columns, and only patches a whole number of steps away are neighbours. Patches of
    another image, or of another block of the same image (a tile, the overview), are none. All text before a patch
    and the newline and class tokens of images stay visible. Windows are not shifted inwards at the border, as
    they are in the encoder the source describes: a causal model has no later patches to fill them with.

    Text rows and patches that lose nothing stay bit-identical in the first of the chosen layers.

    Args:
        k: width of the window, odd.
        dilation: rows and columns per step.
        layers: which layers; None for all.

    Raises:
        LvlmAttnError: if k is even or a parameter is no whole number of at least 1.

    Example:
        >>> str(Neighborhood(k=9, layers="16:"))
        'neighborhood:k=9,layers=16:'
    """

    name: ClassVar[str] = "neighborhood"
    needs_image: ClassVar[bool] = True

    k: int = 7
    dilation: int = 1
    layers: Layers = None

    def __post_init__(self) -> None:
        need_whole(self, "k", 1, 9_999, remark="and odd")
        need_whole(self, "dilation", 1, 9_999, remark="the rows and columns per step")
        if self.k % 2 == 0:
            raise LvlmAttnError(
                f"Neighborhood: k={self.k} must be odd, so that a patch stands in the middle of its window; take "
                f"{self.k - 1} or {self.k + 1}."
            )
        need_layers(self)

    def fit(self, target: Target) -> Self:
        """Chooses the layers for a model.

        Raises:
            UnsupportedError: if rows and columns of its image tokens are not known.
        """
        if not target.family.has_grid:
            raise UnsupportedError(
                f"Neighborhood needs rows and columns, and those of {target.family.title}'s image tokens are not "
                f"known; use Hollow, which counts along the sequence."
            )
        return super().fit(target)

    def visibility(self, layer: Layer) -> Visibility | None:
        """Patches attend to their neighbours."""
        return once_per_call(layer, lambda: self._make(layer)) if layer.is_prompt else None

    def _make(self, layer: Layer) -> Made:
        layout = layer.layout
        half = self.k // 2
        seen = neighbours_before(layout, half, self.dilation)
        is_changed = layout.is_patch
        if not layer.call.attends_ahead:
            is_changed = is_changed & (layout.is_patch.cumsum(1) > seen)
        visibility = Visibility(
            torch.zeros_like(layout.kind),
            earlier=((ALL,),),
            predicate=is_neighbour(layout, half, self.dilation),
            touches=is_changed,
        )
        return Made(visibility, (is_changed[:, layer.queries].sum(),))

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Per layer: how many patches attend to less."""
        return counted(stats, ("rows",))


def neighbours_before(layout: PromptLayout, half: int, dilation: int) -> Tensor:
    """`(batch, length)`: how many neighbours each patch has up to and with itself; undefined elsewhere."""
    width = torch.zeros_like(layout.kind)
    for sample, grids in enumerate(layout.grids):
        for image, grid in enumerate(grids):
            for block, shape in enumerate(grid.blocks):
                here = (layout.image[sample] == image) & (layout.block[sample] == block)
                width[sample].masked_fill_(here, shape.cols)
    above = (layout.row // dilation).clamp(max=half)
    left = (layout.col // dilation).clamp(max=half)
    right = ((width - 1 - layout.col) // dilation).clamp(max=half)
    return above * (left + 1 + right) + left + 1


def is_neighbour(layout: PromptLayout, half: int, dilation: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A predicate for `Visibility`: False for pairs of patches that are no neighbours."""
    # One number per block of patches: -1 where there is none.
    blocks = max((len(grid.blocks) for grids in layout.grids for grid in grids), default=1)
    place = torch.where(layout.is_patch, layout.image * blocks + layout.block, -1)
    fields = torch.stack((place, layout.row, layout.col))

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        known = fields.to(query.device)
        place_q, row_q, col_q = _at(known, query.squeeze(2)).unsqueeze(-1)
        place_k, row_k, col_k = _at(known, key.squeeze(1).expand(query.shape[0], -1)).unsqueeze(2)
        down, across = (row_q - row_k).abs(), (col_q - col_k).abs()
        near = (place_q == place_k) & (down <= half * dilation) & (across <= half * dilation)
        if dilation > 1:
            near &= (down % dilation == 0) & (across % dilation == 0)
        allowed: Tensor = near | (place_q < 0) | (place_k < 0)
        return allowed

    return predicate


def _at(fields: Tensor, index: Tensor) -> Tensor:
    """`(3, batch, n)`: the fields at some positions `(batch, n)`; -1 past the end."""
    length = fields.shape[2]
    found = fields.gather(2, index.clamp(max=length - 1).expand(fields.shape[0], -1, -1))
    return found.masked_fill(index >= length, -1)
