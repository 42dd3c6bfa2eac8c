"""Ovis2: the whole image first, then its tiles, with indicator tokens between (https://arxiv.org/abs/2405.20797).

Every tile takes `ceil(image_size / patch_size / hidden_stride)^2` tokens. The configuration names five indicators in
this order: start, grid (after the whole image), column, row, end. A row indicator stands between rows of tiles, a
column indicator between tiles of a row. Indicators are embedded by the image encoder, so all five are fillers of the
image, also the two around it.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs, side
from lvlm_attn.families.tiles import Run, check_tiles, grouped, runs_of, whole_then_tiles
from lvlm_attn.layout.grids import ImageGrid

_ROW = 3


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Tiles with a single indicator between them are of one image.

    Raises:
        UnsupportedError: if a run of image tokens is no tile.
        LvlmAttnError: if the tiles are not as many as the encoded ones.
    """
    vision = image_inputs.config.vision_config
    (height, width), (tall, wide) = side(vision.image_size), side(vision.patch_size)
    rows, cols = -(-(height // tall) // vision.hidden_stride), -(-(width // wide) // vision.hidden_stride)
    runs = runs_of(image_inputs)
    check_tiles(image_inputs, runs, rows * cols)
    indicator = list(image_inputs.config.visual_indicator_token_ids)[_ROW]
    groups = grouped(runs, lambda run: len(run.before) > 1)
    return [whole_then_tiles(len(group), rows, cols, _across(group, indicator)) for group in groups]


def _across(group: list[Run], indicator: int) -> int | None:
    """Tiles in a row, from the number of row indicators before them."""
    tiles = len(group) - 1
    down = 1 + sum(run.before == (indicator,) for run in group[1:])
    return tiles // down if tiles and tiles % down == 0 else None


FAMILY = Family(
    name="ovis2",
    title="Ovis2",
    grids=grids,
    remarks="16 x 16 patches a tile, the whole image first; indicators between tiles are fillers.",
    examples=("thisisiron/Ovis2-1B-hf", "thisisiron/Ovis2-8B-hf"),
    marks_between=True,
    edges=lambda config: config.visual_indicator_token_ids,
    encoder=False,
)
