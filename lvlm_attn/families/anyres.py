"""Any-resolution grids: a small picture of the whole image, then the image at high resolution, row by row.

The image is scaled into the best of a few resolutions, cut into tiles and encoded; the tiles are put together
again, the rows and columns that hold only padding are cut off, and a newline embedding is put after each row.
Source: LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next) and LLaVA-OneVision
    (https://arxiv.org/abs/2408.03326).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import ImageInputs, image_features, image_runs, image_token_id, side
from lvlm_attn.layout.grids import Block, ImageGrid


def base_block(config: Any) -> Block:
    """The whole image scaled to the encoder's square."""
    vision = config.vision_config
    (height, width), (patch_height, patch_width) = side(vision.image_size), side(vision.patch_size)
    rate = Fraction(getattr(config, "downsample_rate", None) or 1)  # of Granite 4 Vision
    return Block(int(height // patch_height * rate), int(width // patch_width * rate), "base")


def unpadded(size: tuple[int, int], rows: int, cols: int) -> tuple[int, int]:
    """Rows and columns that are left of a `rows x cols` grid when its padding is cut off.

    Args:
        size: height and width of the original image.
        rows: patches from top to bottom at the chosen resolution.
        cols: patches from left to right at the chosen resolution.

    Example:
        >>> unpadded((480, 640), 48, 48)
        (36, 48)
    """
    height, width = size
    if width / height > cols / rows:
        content = int(round(height * (cols / width), 7))
        return rows - 2 * ((rows - content) // 2), cols
    content = int(round(width * (rows / height), 7))
    return rows, cols - 2 * ((cols - content) // 2)


def shrunk(rows: int, cols: int, base_rows: int, max_tiles: int) -> tuple[int, int]:
    """Rows and columns after LLaVA-OneVision scales down an image of far more than `max_tiles` tiles.

    Example:
        >>> shrunk(162, 162, 27, 9)
        (81, 81)
    """
    ratio = math.sqrt(rows * cols / (max_tiles * base_rows**2))
    return (int(rows // ratio), int(cols // ratio)) if ratio > 1.1 else (rows, cols)


def grid_of_size(size: tuple[int, int], config: Any, max_tiles: int | None) -> ImageGrid:
    """The grid of an image of `(height, width)` pixels; `max_tiles` is None where nothing is scaled down."""
    base = base_block(config)
    edge = side(config.vision_config.image_size)[0]
    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    rows, cols = unpadded(size, base.rows * (height // edge), base.cols * (width // edge))
    if max_tiles is not None:
        rows, cols = shrunk(rows, cols, base.rows, max_tiles)
    return ImageGrid((base, Block(rows, cols, "tiles", newline=True)) if rows else (base,))


def grid_of_features(features: Tensor, newline: Tensor | None, config: Any) -> ImageGrid:
    """The grid of one image from its `(tokens, hidden)` features: newlines stand at the end of every row.

    Raises:
        UnsupportedError: if the newlines are not where a grid has them, as when a chunk ends in the image.
    """
    base = base_block(config)
    rest = len(features) - base.tokens
    if rest == 0:
        return ImageGrid((base,))
    if rest > 0 and newline is not None:
        tail = features[base.tokens :]
        is_newline = (tail == newline.detach().to(tail)).all(1)
        rows = int(is_newline.sum())
        if rest == 1 and rows == 1:
            return ImageGrid((base,), trailing_fillers=1)
        if rows and rest % rows == 0 and bool(is_newline.view(rows, -1)[:, -1].all()):
            return ImageGrid((base, Block(rows, rest // rows - 1, "tiles", newline=True)))
    raise UnsupportedError(
        f"An image of {len(features)} tokens is no {base} block followed by rows that end in the newline "
        "embedding; pass image_sizes as the processor returns them, and prefill_chunk_size=None."
    )


def find_grids(
    image_inputs: ImageInputs, max_tiles: int | None, patched: Iterable[bool] | None = None
) -> list[ImageGrid]:
    """The grids of all images, from their features if they are known already, else from `image_sizes`.

    Args:
        image_inputs: what is known of the prompt.
        max_tiles: see `grid_of_size`.
        patched: for each image, whether it has tiles besides the base block; None if all have.

    Raises:
        LvlmAttnError: if nothing tells the sizes of the images.
    """
    config = image_inputs.config
    features = image_features(image_inputs)
    sizes = image_inputs.call.get("image_sizes")
    if features is None and sizes is not None:
        pairs = [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]
        tiled = [True] * len(pairs) if patched is None else list(patched)
        single = ImageGrid((base_block(config),), trailing_fillers=1)
        return [
            grid_of_size(pair, config, max_tiles) if tiles else single for pair, tiles in zip(pairs, tiled)
        ]
    if features is None and image_inputs.inputs_embeds is not None:
        runs = image_runs(image_inputs.input_ids, image_token_id(config))
        features = [image_inputs.inputs_embeds[row, start:stop] for row, start, stop in runs]
    if features is None:
        raise LvlmAttnError(
            f"The prompt holds image tokens, but neither image_sizes nor image features of this "
            f"{config.model_type} "
            "model; pass pixel_values and image_sizes as the processor returns them."
        )
    return [grid_of_features(feature, image_inputs.newline, config) for feature in features]
