"""Llama 4: tiles with separators between them, then the whole image; layers that attend within chunks.

Every tile takes `(image_size / patch_size * pixel_shuffle_ratio)^2` tokens. A separator stands between tiles of a row
and another one after each row; then a marker and the whole image, between the start and the end of the image that the
configuration names. Three of four text layers attend within chunks of `attention_chunk_size` tokens.
"""

from __future__ import annotations

import math
from typing import Any

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.fits import Fit
from lvlm_attn.families.tiles import Run, check_tiles, grouped, runs_of, shuffled_side, tiles_then_whole
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Tiles without an end of image between them are of one image.

    Raises:
        UnsupportedError: if a run of image tokens is no tile.
        LvlmAttnError: if the tiles are not as many as the encoded ones.
    """
    rows, cols = shuffled_side(image_inputs.config, 1 / image_inputs.config.vision_config.pixel_shuffle_ratio)
    runs = runs_of(image_inputs)
    check_tiles(image_inputs, runs, rows * cols)
    groups = grouped(runs, lambda run: image_inputs.config.eoi_token_id in run.before)
    return [tiles_then_whole(len(group), rows, cols, _across(group)) for group in groups]


def fit(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Fit:
    """The picture in its own shape in the upper left corner of its tiles, with black at the right or below.

    It is scaled up to fill its tiles with `resize_to_max_canvas` only, else to no more than one tile's side.
    Source: the image processor of transformers 5.23, whose scales are float32, so that a side may differ by a pixel.

    Raises:
        UnsupportedError: if tiles are in no whole rows, so that nothing tells what they cover.
    """
    tile = (grid.blocks[0].rows, grid.blocks[0].cols)
    tiles, last = grid.blocks[:-1], grid.blocks[-2:][0]
    if tiles and (last.tile_row is None or last.tile_col is None):
        raise UnsupportedError(
            f"An image came as {len(tiles)} tiles in no whole rows, so where they lie is not known; pass the "
            f"processor's ids unchanged."
        )
    down, across = (1 + (last.tile_row or 0), 1 + (last.tile_col or 0)) if tiles else (1, 1)
    edge = int(images.size["height"])
    canvas = (across * edge, down * edge)
    most = canvas
    if not images.resize_to_max_canvas:
        most = (min(max(size[0], edge), canvas[0]), min(max(size[1], edge), canvas[1]))
    across_scale, down_scale = most[0] / size[0], most[1] / size[1]
    if across_scale < down_scale:
        scaled = (most[0], max(1, min(math.floor(size[1] * across_scale), most[1])))
    else:
        scaled = (max(1, min(math.floor(size[0] * down_scale), most[0])), most[1])
    reach = (canvas[0] / scaled[0], canvas[1] / scaled[1])
    return Fit(tile, tile, across, down, reach) if tiles else Fit(tile, tile, reach=reach)


def _across(group: list[Run]) -> int | None:
    """Tiles in a row: what stands after the last of them ends every row."""
    tiles = len(group) - 1
    if not tiles:
        return None
    down = sum(run.before[0] == group[-1].before[0] for run in group[1:])
    return tiles // down if tiles % down == 0 else None


FAMILY = Family(
    name="llama4",
    title="Llama 4",
    grids=grids,
    remarks="12 x 12 patches a tile, the whole image last; three of four layers attend within chunks.",
    examples=("meta-llama/Llama-4-Scout-17B-16E",),
    language_model="language_model.model",
    vision="vision_model",
    marks_between=True,
    text_mask="chunked",
    fit=fit,
    encoder=False,
)
