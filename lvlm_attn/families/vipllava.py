"""ViP-LLaVA: LLaVA's grid with features of five encoder layers (https://arxiv.org/abs/2312.00784)."""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs, side
from lvlm_attn.families.llava import repeat_over_tokens
from lvlm_attn.layout.grids import Block, ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """The same grid for every image; the class token is always dropped."""
    vision = image_inputs.config.vision_config
    (height, width), (patch_height, patch_width) = side(vision.image_size), side(vision.patch_size)
    return repeat_over_tokens(
        ImageGrid((Block(height // patch_height, width // patch_width, "base"),)), image_inputs
    )


FAMILY = Family(
    name="vipllava",
    title="ViP-LLaVA",
    grids=grids,
    remarks="One square grid per image; the features of five encoder layers are put together.",
    examples=("llava-hf/vip-llava-7b-hf", "llava-hf/vip-llava-13b-hf"),
    grid_is_fixed=True,
)
