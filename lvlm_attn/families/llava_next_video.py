"""LLaVA-NeXT-Video: images as in LLaVA-NeXT, videos of frames whose patches are pooled to a quarter.

Source: https://llava-vl.github.io/blog/2024-04-30-llava-next-video.
"""

from __future__ import annotations

from lvlm_attn.families.anyres import base_block
from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.frames import grids_of_frames
from lvlm_attn.families.llava_next import grids
from lvlm_attn.families.videos import Videos
from lvlm_attn.layout.grids import ImageGrid


def video_grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Frames of `side // spatial_pool_stride` rows and columns, one after another."""
    base, stride = base_block(image_inputs.config), int(image_inputs.config.spatial_pool_stride)
    return grids_of_frames(image_inputs, base.rows // stride, base.cols // stride)


FAMILY = Family(
    name="llava_next_video",
    title="LLaVA-NeXT-Video",
    grids=grids,
    remarks="Images as in LLaVA-NeXT; 12 x 12 patches a frame of a video.",
    examples=("llava-hf/LLaVA-NeXT-Video-7B-hf",),
    newline="image_newline",
    videos=Videos(video_grids),
)
