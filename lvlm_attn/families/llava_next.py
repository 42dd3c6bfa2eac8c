"""LLaVA-NeXT (LLaVA 1.6): a base block, then the image at any resolution with a newline after each row."""

from __future__ import annotations

from lvlm_attn.families.anyres import find_grids
from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Base and tiles of every image."""
    return find_grids(image_inputs, max_tiles=None)


FAMILY = Family(
    name="llava_next",
    title="LLaVA-NeXT",
    grids=grids,
    remarks="Base block of 24 x 24, then the unpadded image at high resolution; newlines are fillers.",
    examples=("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-hf/llava-v1.6-mistral-7b-hf"),
    newline="image_newline",
)
