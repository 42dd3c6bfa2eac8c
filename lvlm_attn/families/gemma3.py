"""Gemma 3: one square grid for every image, which attends to itself both ways (https://arxiv.org/abs/2503.19786).

The encoder's patches are averaged to `mm_tokens_per_image` tokens. With pan-and-scan the processor adds crops, each
with markers and an image of its own here. Five of six text layers attend within a sliding window, which bounds what
an image attends to before it, not after it. `token_type_ids` tell the model where images are; without them it attends
causally.
"""

from __future__ import annotations

from math import isqrt

from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.llava import repeat_over_tokens
from lvlm_attn.layout.grids import Block, ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """The same square for every image."""
    edge = isqrt(image_inputs.config.mm_tokens_per_image)
    return repeat_over_tokens(ImageGrid((Block(edge, edge, "base"),)), image_inputs)


FAMILY = Family(
    name="gemma3",
    title="Gemma 3",
    grids=grids,
    remarks="One grid of 16 x 16 per image or crop; images attend to themselves both ways, most layers in a window.",
    examples=("google/gemma-3-4b-it", "google/gemma-3-12b-it"),
    grid_is_fixed=True,
    text_mask="bidirectional_images",
    token_types="token_type_ids",
    modules_fit=False,
)
