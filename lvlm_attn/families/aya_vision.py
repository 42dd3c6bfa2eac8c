"""Aya Vision: tiles after numbered tags, then the whole image (https://arxiv.org/abs/2505.08751).

Every tile takes `(image_size / patch_size / downsample_factor)^2` tokens, and one tag stands between two tiles of an
image; an end and a start marker stand between images. How the tiles are arranged is not among the model's inputs, so
`tile_row` and `tile_col` stay open.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.tiles import check_tiles, grouped, runs_of, shuffled_side, tiles_then_whole
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Tiles with a single token between them are of one image.

    Raises:
        UnsupportedError: if a run of image tokens is no tile.
        LvlmAttnError: if the tiles are not as many as the encoded ones.
    """
    rows, cols = shuffled_side(image_inputs.config, image_inputs.config.downsample_factor)
    runs = runs_of(image_inputs)
    check_tiles(image_inputs, runs, rows * cols)
    groups = grouped(runs, lambda run: len(run.before) > 1)
    return [tiles_then_whole(len(group), rows, cols) for group in groups]


FAMILY = Family(
    name="aya_vision",
    title="Aya Vision",
    grids=grids,
    remarks="13 x 13 patches a tile, the whole image last; most text layers attend within a sliding window.",
    examples=("CohereLabs/aya-vision-8b", "CohereLabs/aya-vision-32b"),
    marks_between=True,
    encoder=False,
    modules_fit=False,
)
