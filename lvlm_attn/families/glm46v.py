"""GLM-4.6V: images of any resolution, one block of patches each (https://arxiv.org/abs/2507.01006)."""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.mrope import grids
from lvlm_attn.families.mrope_videos import videos_as_images
from lvlm_attn.families.videos import Videos

FAMILY = Family(
    name="glm46v",
    title="GLM-4.6V",
    grids=grids,
    remarks="Any resolution, 28 pixels a patch; rotary positions in three directions.",
    examples=("zai-org/GLM-4.6V-Flash",),
    vision="visual",
    encoder=False,
    modules_fit=False,
    videos=Videos(videos_as_images, are_images=True, has_timestamps=True),
)
