"""LFM2-VL: tiles after tags, then the image at its own size; most text layers are convolutions.

Tiles and thumbnail are of any size up to `max_image_tokens`. `generate` tells how many tokens each takes, not how they
are arranged, so rows and columns are open here; maps, which know the picture, work them out from its size (`fit`).
A single tag stands between tiles of an image, an end and a start marker between images. Convolutions have no softmax
weights and are skipped; image tokens flow through them.
"""

from __future__ import annotations

import math
from typing import Any

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_features
from lvlm_attn.families.fits import Fit, arrangements, nearest_shape
from lvlm_attn.families.tiles import grouped, runs_of, unplaced
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Runs with a single tag between them are of one image.

    Raises:
        UnsupportedError: if runs are not the tiles that are encoded, as without image markers in the prompt.
    """
    runs = runs_of(image_inputs)
    features, pixels = image_features(image_inputs), image_inputs.call.get("pixel_values")
    encoded = features if features is not None else pixels
    if encoded is not None and len(encoded) != len(runs):
        raise UnsupportedError(
            f"The prompt has {len(runs)} runs of image tokens for {len(encoded)} tiles, so they cannot be told apart; "
            f"leave use_image_special_tokens on, and pass prefill_chunk_size=None."
        )
    return [
        unplaced([run.tokens for run in group]) for group in grouped(runs, lambda run: len(run.before) > 1)
    ]


def fit(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Fit:
    """Tiles where the picture has far more pixels than `max_image_tokens` show, and the picture in whole tokens.

    Source: the image processor of transformers 5.23.
    """
    width, height = size
    token = images.encoder_patch_size * images.downsample_factor
    whole = _whole(size, token, images.min_image_tokens, images.max_image_tokens)
    edge = math.ceil(images.tile_size // images.encoder_patch_size / images.downsample_factor)
    rounded = [max(images.encoder_patch_size, round(side / token) * token) for side in size]
    is_large = math.prod(rounded) > images.max_image_tokens * token**2 * images.max_pixels_tolerance
    least, most = images.min_tiles, images.max_tiles
    if not is_large or not images.do_image_splitting or least == most == 1:
        return Fit((edge, edge), whole)
    across, down = nearest_shape(arrangements(least, most), (width, height), images.tile_size**2)
    return Fit((edge, edge), whole if images.use_thumbnail else None, across, down)


def _whole(size: tuple[int, int], token: int, least: int, most: int) -> tuple[int, int]:
    """Rows and columns of a picture that is scaled to `least` to `most` tokens of `token x token` pixels."""
    cols, rows = (max(1, round(side / token)) for side in size)
    pixels = size[0] * size[1]
    if rows * cols > most:
        scale = math.sqrt(pixels / (most * token**2))
        cols, rows = (max(1, math.floor(side / scale / token)) for side in size)
    elif rows * cols < least:
        scale = math.sqrt(least * token**2 / pixels)
        cols, rows = (math.ceil(side * scale / token) for side in size)
    return rows, cols


FAMILY = Family(
    name="lfm2_vl",
    title="LFM2-VL",
    grids=grids,
    remarks="Any resolution, rows and columns open; most text layers are convolutions, which are skipped.",
    examples=("LiquidAI/LFM2-VL-1.6B", "LiquidAI/LFM2-VL-3B"),
    output_projection="out_proj",
    final_norm="embedding_norm",
    marks_between=True,
    has_grid=False,
    fit=fit,
    encoder=False,
)
