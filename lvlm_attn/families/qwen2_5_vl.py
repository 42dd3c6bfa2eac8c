"""Qwen2.5-VL: images of any resolution, one block of patches each (https://arxiv.org/abs/2502.13923)."""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.mrope import grids
from lvlm_attn.families.mrope_videos import whole_videos
from lvlm_attn.families.videos import Videos

FAMILY = Family(
    name="qwen2_5_vl",
    title="Qwen2.5-VL",
    grids=grids,
    remarks="Any resolution, 28 pixels a patch; rotary positions in three directions.",
    examples=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
    vision="visual",
    videos=Videos(whole_videos),
)
