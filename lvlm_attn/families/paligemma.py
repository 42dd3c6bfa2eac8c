"""PaliGemma 1 and 2: one square grid per image; the whole prompt attends to itself (https://arxiv.org/abs/2407.07726).

Images come first, 16 x 16 patches at 224 pixels, 32 x 32 at 448 and 64 x 64 at 896. All tokens of the prompt with
`token_type_ids` 0 attend to one another; the answer attends causally. Without token types the model attends causally.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs, side
from lvlm_attn.families.llava import repeat_over_tokens
from lvlm_attn.layout.grids import Block, ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """The encoder's grid for every image."""
    vision = image_inputs.config.vision_config
    (height, width), (tall, wide) = side(vision.image_size), side(vision.patch_size)
    return repeat_over_tokens(ImageGrid((Block(height // tall, width // wide, "base"),)), image_inputs)


FAMILY = Family(
    name="paligemma",
    title="PaliGemma",
    grids=grids,
    remarks="One grid per image, 16 x 16 at 224 pixels; all of the prompt attends to itself both ways.",
    examples=("google/paligemma2-3b-mix-224", "google/paligemma-3b-mix-224"),
    grid_is_fixed=True,
    text_mask="bidirectional_prompt",
    token_types="token_type_ids",
    first_position=1,
    modules_fit=False,
)
