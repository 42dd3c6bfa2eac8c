"""Janus and Janus-Pro, for understanding images: one square grid for each (https://arxiv.org/abs/2501.17811).

24 x 24 patches at 384 pixels, between a start and an end marker, which are text. Making images is not covered.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.paligemma import grids

FAMILY = Family(
    name="janus",
    title="Janus",
    grids=grids,
    remarks="One grid of 24 x 24 per image; for text generation only.",
    examples=("deepseek-community/Janus-Pro-1B", "deepseek-community/Janus-Pro-7B"),
    vision="vision_model",
    grid_is_fixed=True,
)
