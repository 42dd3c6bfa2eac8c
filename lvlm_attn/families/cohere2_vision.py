"""Cohere2 Vision (Command A Vision): tiles with a line break after each, the whole image last.

Every tile takes `(image_size / patch_size / downsample_factor)^2` tokens. A line break stands between two tiles of an
image; a break, an end and a start marker stand between images.
"""

from __future__ import annotations

from lvlm_attn.families.aya_vision import grids
from lvlm_attn.families.family import Family

FAMILY = Family(
    name="cohere2_vision",
    title="Cohere2 Vision",
    grids=grids,
    remarks="16 x 16 patches a tile, the whole image last; most text layers attend within a sliding window.",
    examples=("CohereLabs/command-a-vision-07-2025",),
    marks_between=True,
    encoder=False,
    places=False,
    modules_fit=False,
)
