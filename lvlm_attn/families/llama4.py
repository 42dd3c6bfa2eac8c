"""Llama 4: tiles with separators between them, then the whole image; layers that attend within chunks.

Every tile takes `(image_size / patch_size * pixel_shuffle_ratio)^2` tokens. A separator stands between tiles of a row
and another one after each row; then a marker and the whole image, between the start and the end of the image that the
configuration names. Three of four text layers attend within chunks of `attention_chunk_size` tokens.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs
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
    places=False,
    encoder=False,
)
