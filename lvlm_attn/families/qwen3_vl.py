"""Qwen3-VL: images of any resolution, one block of patches each (https://arxiv.org/abs/2511.21631)."""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.mrope import grids
from lvlm_attn.families.mrope_videos import split_videos
from lvlm_attn.families.videos import Videos

FAMILY = Family(
    name="qwen3_vl",
    title="Qwen3-VL",
    grids=grids,
    remarks="Any resolution, 32 pixels a patch; image features are added again in the first layers.",
    examples=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"),
    vision="visual",
    videos=Videos(split_videos, has_timestamps=True),
)
