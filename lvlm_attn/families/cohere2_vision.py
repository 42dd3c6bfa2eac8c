"""Cohere2 Vision (Command A Vision): tiles with a line break after each, the whole image last.

Every tile takes `(image_size / patch_size / downsample_factor)^2` tokens. A line break stands between two tiles of an
image; a break, an end and a start marker stand between images.
"""

from __future__ import annotations

from typing import Any

from lvlm_attn.families.aya_vision import grids
from lvlm_attn.families.family import Family
from lvlm_attn.families.fits import Fit, arrangements
from lvlm_attn.layout.grids import ImageGrid


def fit(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Fit:
    """The tiles that scale the picture up the least, or where none is large enough, down the least.

    Source: the image processor of transformers 5.23.
    """
    tile = (grid.blocks[0].rows, grid.blocks[0].cols)
    if not images.crop_to_patches:
        return Fit(tile, tile)
    edge = int(images.size["height"])
    found = arrangements(1, images.max_patches)
    scales = [min(across * edge / size[0], down * edge / size[1]) for across, down in found]
    enough = [scale for scale in scales if scale >= 1]
    across, down = found[scales.index(min(enough) if enough else max(scales))]
    return Fit(tile, tile) if across * down == 1 else Fit(tile, tile, across, down)


FAMILY = Family(
    name="cohere2_vision",
    title="Cohere2 Vision",
    grids=grids,
    remarks="16 x 16 patches a tile, the whole image last; most text layers attend within a sliding window.",
    examples=("CohereLabs/command-a-vision-07-2025",),
    marks_between=True,
    encoder=False,
    fit=fit,
    modules_fit=False,
)
