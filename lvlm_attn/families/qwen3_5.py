"""Qwen3.5: images of any resolution; three of four text layers are linear attention.

Linear layers have no softmax weights and no heads in the sense of the methods here, so sites of attention and heads
skip them; image tokens flow through them as always. In the layers with softmax, the output of the attention is gated
before the output projection. Head outputs are taken after the gate, before the projection: that is what a head
adds to the residual stream. Head divergence measured at the attention's own output, before the gate, differs.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.mrope import grids
from lvlm_attn.families.mrope_videos import split_videos
from lvlm_attn.families.videos import Videos

FAMILY = Family(
    name="qwen3_5",
    title="Qwen3.5",
    grids=grids,
    remarks="Any resolution, 32 pixels a patch; only every fourth layer has softmax attention, the others are skipped.",
    examples=("Qwen/Qwen3.5-27B",),
    vision="visual",
    videos=Videos(split_videos, has_timestamps=True),
)
