"""Mistral 3 (Small 3.1 and 3.2): images of any resolution, with a break token after each row of patches.

An image of `image_sizes = (height, width)` pixels takes `height // (patch * merge)` rows of `width // (patch * merge)`
tokens. A break stands between rows and an end token after the last; both are text tokens, not image tokens.
Breaks are fillers here, the end token is text. Where `generate` hides the sizes, the encoded images tell how many
tokens each takes, and the breaks where its rows end.
"""

from __future__ import annotations

import torch

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_features
from lvlm_attn.families.tiles import runs_of
from lvlm_attn.layout.grids import Block, ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each image.

    Raises:
        LvlmAttnError: if nothing tells the sizes of the images.
        UnsupportedError: if the runs of image tokens are not the rows of images of these sizes.
    """
    config, features = image_inputs.config, image_features(image_inputs)
    sizes = image_inputs.call.get("image_sizes")
    if features is not None:
        return _from_rows(image_inputs, [len(feature) for feature in features])
    if sizes is None:
        raise LvlmAttnError(
            "The prompt holds image tokens, but neither image_sizes nor image features of this mistral3 model; pass "
            "pixel_values and image_sizes as the processor returns them."
        )
    step = config.vision_config.patch_size * config.spatial_merge_size
    shapes = [(int(height) // step, int(width) // step) for height, width in torch.as_tensor(sizes).tolist()]
    found = _from_rows(image_inputs, [rows * cols for rows, cols in shapes])
    for grid, (rows, cols) in zip(found, shapes):
        if (grid.blocks[0].rows, grid.blocks[0].cols) != (rows, cols):
            raise UnsupportedError(
                f"An image of the prompt has {grid} of image tokens, and image_sizes say {rows}x{cols}; build ids "
                f"and images with one processor call."
            )
    return found


def _from_rows(image_inputs: ImageInputs, lengths: list[int]) -> list[ImageGrid]:
    """The grids of images of so many tokens, each run of image tokens being one row of one of them."""
    runs = iter(runs_of(image_inputs))
    found = []
    for number, length in enumerate(lengths):
        widths: list[int] = []
        while sum(widths) < length and (run := next(runs, None)) is not None:
            widths.append(run.tokens)
        if sum(widths) != length or len(set(widths)) != 1:
            raise UnsupportedError(
                f"Image {number} of the batch has {length} features, and the rows of image tokens in the prompt are "
                f"{widths} long; pass the processor's ids unchanged, and prefill_chunk_size=None."
            )
        found.append(ImageGrid((Block(len(widths), widths[0], "base"),)))
    return found


FAMILY = Family(
    name="mistral3",
    title="Mistral 3",
    grids=grids,
    remarks="Any resolution, 28 pixels a patch; breaks after rows are fillers.",
    examples=(
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
    ),
    marks_between=True,
    encoder=False,
)
