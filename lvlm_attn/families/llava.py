"""LLaVA 1.5 and its kin: one square grid of patches for every image (https://arxiv.org/abs/2310.03744).

Each image is scaled to the encoder's square; its patches stand in row-major order. The encoder's class token
is dropped (strategy "default") or kept in front of the patches (strategy "full").
"""

from __future__ import annotations

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_token_id, side
from lvlm_attn.layout.grids import Block, ImageGrid

WITH_CLASS_TOKEN = frozenset({"clip_vision_model", "dinov2"})
WITHOUT_CLASS_TOKEN = frozenset({"siglip_vision_model"})


def fixed_grid(image_inputs: ImageInputs) -> ImageGrid:
    """The grid that every image takes: the encoder's image size over its patch size, on both sides.

    Raises:
        UnsupportedError: if the image encoder has no fixed grid.
    """
    vision = image_inputs.config.vision_config
    strategy = image_inputs.call.get("vision_feature_select_strategy") or getattr(
        image_inputs.config, "vision_feature_select_strategy", "default"
    )
    kind = vision.model_type
    if kind not in WITH_CLASS_TOKEN | WITHOUT_CLASS_TOKEN:
        raise UnsupportedError(
            f"The image encoder {kind!r} of this {image_inputs.config.model_type} model is not supported; "
            f"supported are {', '.join(sorted(WITH_CLASS_TOKEN | WITHOUT_CLASS_TOKEN))}."
        )
    if strategy == "default" and kind in WITHOUT_CLASS_TOKEN:
        raise UnsupportedError(
            f"vision_feature_select_strategy='default' drops the first patch of {kind!r}, which has no "
            f"class token, "
            "so the patches no longer fill a grid; set it to 'full'."
        )
    (height, width), (patch_height, patch_width) = side(vision.image_size), side(vision.patch_size)
    return ImageGrid(
        (Block(height // patch_height, width // patch_width, "base"),),
        leading_fillers=int(strategy == "full" and kind in WITH_CLASS_TOKEN),
    )


def repeat_over_tokens(grid: ImageGrid, image_inputs: ImageInputs) -> list[ImageGrid]:
    """One `grid` for each image that begins in the ids, the last of a row possibly cut by a chunk."""
    counts = (image_inputs.input_ids == image_token_id(image_inputs.config)).sum(1).tolist()
    seen = image_inputs.after.unfinished if image_inputs.after is not None else (0,) * len(counts)
    rest = [grid.tokens - done if done else 0 for done in seen]
    return [grid] * sum(-(-max(count - left, 0) // grid.tokens) for count, left in zip(counts, rest))


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """The same grid for every image."""
    return repeat_over_tokens(fixed_grid(image_inputs), image_inputs)


FAMILY = Family(
    name="llava",
    title="LLaVA",
    grids=grids,
    remarks="One square grid per image, 24 x 24 at 336 pixels.",
    examples=("llava-hf/llava-1.5-7b-hf", "llava-hf/llava-1.5-13b-hf", "llava-hf/bakLlava-v1-hf"),
    grid_is_fixed=True,
)
