"""LLaVA-NeXT-Video, for images: LLaVA-NeXT's base block and tiles with newlines. Videos are refused.

Source: https://llava-vl.github.io/blog/2024-04-30-llava-next-video.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.llava_next import grids

FAMILY = Family(
    name="llava_next_video",
    title="LLaVA-NeXT-Video",
    grids=grids,
    remarks="Images as in LLaVA-NeXT; videos are refused, single frames go in as images.",
    examples=("llava-hf/LLaVA-NeXT-Video-7B-hf",),
    newline="image_newline",
)
