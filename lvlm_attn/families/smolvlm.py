"""SmolVLM: Idefics3's tiles and tags with fewer tokens a tile (https://arxiv.org/abs/2504.05299)."""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.idefics3 import grids

FAMILY = Family(
    name="smolvlm",
    title="SmolVLM",
    grids=grids,
    remarks="8 x 8 patches a tile, the whole image last; tags and newlines between tiles are fillers.",
    examples=("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"),
    language_model="text_model",
    vision="vision_model",
    marks_between=True,
    encoder=False,
)
