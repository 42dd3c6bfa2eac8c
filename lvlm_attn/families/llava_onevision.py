"""LLaVA-OneVision: any resolution, scaled down to nine tiles' patches (https://arxiv.org/abs/2408.03326).

An image alone in its row has a base block and tiles as in LLaVA-NeXT; of several images in a row, each has
its base block and one newline. The patches of a frame of a video are scaled to half their rows and columns, and one
newline stands at the end of the video.
"""

from __future__ import annotations

import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.anyres import base_block, find_grids
from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.frames import grids_of_frames
from lvlm_attn.families.videos import Videos
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Base and tiles of an image alone in its row, base and one newline of every other."""
    per_row = image_inputs.call.get("batch_num_images")
    patched = None
    if per_row is not None:
        patched = [n == 1 for n in torch.as_tensor(per_row).tolist() for _ in range(n)]
    return find_grids(image_inputs, _max_tiles(image_inputs.config.vision_aspect_ratio), patched)


def video_grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Frames of half the rows and columns, rounded up, one after another, and a newline."""
    base = base_block(image_inputs.config)
    return grids_of_frames(image_inputs, -(-base.rows // 2), -(-base.cols // 2), after=1)


def _max_tiles(aspect_ratio: str) -> int:
    name, _, number = aspect_ratio.rpartition("_")
    if name != "anyres_max" or not number.isdigit():
        raise LvlmAttnError(f"vision_aspect_ratio={aspect_ratio!r} is not known; use 'anyres_max_9'.")
    return int(number)


FAMILY = Family(
    name="llava_onevision",
    title="LLaVA-OneVision",
    grids=grids,
    remarks="Base block of 27 x 27, then up to nine tiles' worth of patches; newlines are fillers; frames of 14 x 14.",
    examples=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
    newline="image_newline",
    videos=Videos(video_grids),
)
