"""How pictures are fitted into tiles and tokens, against what each family's image processor makes of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lvlm_attn as la
from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import models
from lvlm_attn.families.fits import Fit
from lvlm_attn.families.tiles import tiles_then_whole, unplaced
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.maps.geometry import Level, fitted_levels
from lvlm_attn.maps.maps import pixel_map
from lvlm_attn.maps.occluded_regions import Regions
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.maps.viewer.describe import images_of, kept_keys
from tests.maps.made import hand_made
from tests.maps.painted import processor
from tests.tiny import tiny_config
from tests.versions import needs_own_image_processors

_RNG = np.random.default_rng(7)
SIZES = [
    (150, 1),
    (1, 150),
    (24, 24),
    (36, 24),
    *(tuple(int(side) for side in 2 ** _RNG.uniform(3, 9, 2)) for _ in range(60)),
]


def fit_of(name: str, grid: ImageGrid, size: tuple[int, int], images: Any) -> Fit:
    found = models()[name].fit
    assert found is not None
    return found(grid, size, tiny_config(name), images)


def white(size: tuple[int, int]) -> Image.Image:
    return Image.new("RGB", size, (255, 255, 255))


@needs_own_image_processors
def test_gemma4_tokens_are_in_the_processors_rows_and_columns() -> None:
    images = processor("gemma4").image_processor
    for size in SIZES:
        places = torch.as_tensor(np.asarray(images([white(size)])["image_position_ids"]))[0]
        cols, rows = ((int(places[:, axis].max()) + 1) // 2 for axis in (0, 1))
        assert fit_of("gemma4", unplaced([rows * cols]), size, images) == Fit((0, 0), (rows, cols))


def test_gemma4_without_scaling_has_the_pictures_own_tokens() -> None:
    images = type("Settings", (), {"patch_size": 2, "pooling_kernel_size": 2, "do_resize": False})
    assert fit_of("gemma4", unplaced([6]), (12, 8), images).whole == (2, 3)


def test_lfm2_tiles_are_the_processors() -> None:
    images = processor("lfm2_vl").image_processor
    for size in SIZES:
        made = images([white(size)], return_row_col_info=True, return_tensors="pt")
        rows, cols = int(made["image_rows"][0]), int(made["image_cols"][0])
        fit = fit_of("lfm2_vl", unplaced([1]), size, images)
        assert fit.shapes == [tuple(side // 2 for side in shape) for shape in made["spatial_shapes"].tolist()]
        assert (max(fit.down, 1), max(fit.across, 1)) == (rows, cols)
        assert (fit.across * fit.down > 0) == (len(made["spatial_shapes"]) > 1)


def test_lfm2_settings_leave_out_tiles_and_the_whole() -> None:
    images = processor("lfm2_vl").image_processor
    for settings in (
        {"do_image_splitting": False},
        {"use_thumbnail": False},
        {"min_tiles": 1, "max_tiles": 1},
    ):
        changed = type("Settings", (), {**images.to_dict(), **settings})
        made = images([white((200, 90))], return_tensors="pt", **settings)
        fit = fit_of("lfm2_vl", unplaced([1]), (200, 90), changed)
        assert fit.shapes == [tuple(side // 2 for side in shape) for shape in made["spatial_shapes"].tolist()]


def test_cohere2_tiles_are_the_processors() -> None:
    """Tiles of a picture that grows lighter from left to right grow darker where a row begins."""
    images = processor("cohere2_vision").image_processor
    for size in (size for size in SIZES if min(size) > 1):
        ramp = np.linspace(0, 255, size[0]).astype(np.uint8)
        picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy())
        light = images([picture], return_tensors="pt")["pixel_values"].mean((1, 2, 3))
        tiles = max(len(light) - 1, 1)
        falls = [place for place in range(1, tiles) if light[place] <= light[place - 1] + 1e-3]
        across = falls[0] if falls else tiles
        fit = fit_of("cohere2_vision", tiles_then_whole(len(light), 3, 3), size, images)
        assert len(fit.shapes) == len(light)
        assert (max(fit.across, 1), max(fit.down, 1)) == (across, tiles // across)


@pytest.mark.parametrize("widest", [False, True])
def test_llama4_pads_at_the_right_and_below(widest: bool) -> None:
    """What is white of the tiles of a white picture ends where the fit says."""
    images = processor("llama4").image_processor
    for size in SIZES:
        made = images([white(size)], resize_to_max_canvas=widest, return_tensors="pt")
        down, across = (int(side) for side in made["aspect_ratios"][0])
        count = down * across
        grid = tiles_then_whole(count + 1 if count > 1 else 1, 3, 3, across)
        settings = type("Settings", (), {**images.to_dict(), "resize_to_max_canvas": widest})
        fit = fit_of("llama4", grid, size, settings)
        assert (fit.across, fit.down) == ((across, down) if count > 1 else (0, 0))
        tiles = made["pixel_values"].reshape(-1, 3, 12, 12)[:count].float().mean(1)
        canvas = tiles.reshape(down, across, 12, 12).transpose(1, 2).reshape(down * 12, across * 12) > 0
        high, wide = int(canvas.any(1).sum()), int(canvas.any(0).sum())
        assert canvas[:high, :wide].all()
        assert fit.reach == pytest.approx((across * 12 / wide, down * 12 / high))


def test_molmo2_canvases_are_the_processors() -> None:
    """Windows end where the canvas of crops does, or one patch behind it."""
    images = processor("molmo2").image_processor
    for size in (size for size in SIZES if min(size) > 1):
        made = images([white(size)], return_tensors="pt")
        grid = ImageGrid(tuple(Block(*shape, "base") for shape in made["image_grids"].view(2, 2).tolist()))
        fit = fit_of("molmo2", grid, size, images)
        pooled, covers = made["image_token_pooling"], (fit.whole_covers, fit.tiles_cover)
        assert fit.shapes == [(block.rows, block.cols) for block in grid.blocks]
        for windows, block, cover in zip(
            pooled.split([block.patches for block in grid.blocks]), grid.blocks, covers
        ):
            assert cover is not None
            full = (windows >= 0).view(block.rows, block.cols, 2, 2)
            high, wide = int(full[:, 0, :, 0].sum()), int(full[0, :, 0].sum())
            assert (cover.left, cover.top) == (0, 0)
            assert (cover.right, cover.bottom) == pytest.approx(
                (2 * block.cols / wide, 2 * block.rows / high)
            )


def test_llama4_tiles_in_no_whole_rows_are_refused() -> None:
    images = type("Settings", (), {"size": {"height": 12}, "resize_to_max_canvas": False})
    with pytest.raises(UnsupportedError, match="no whole rows"):
        fit_of("llama4", tiles_then_whole(6, 3, 3), (99, 98), images)


def test_other_blocks_than_the_processors_are_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"came as blocks of \[5\] tokens, but the processor makes \[6\]"
    ):
        fitted_levels(unplaced([5]), (9, 9), Fit((2, 3), (2, 3)))


OPEN = Fit((2, 2), (1, 2), across=2, down=1, reach=(1.0, 2.0))


def test_open_tiles_lie_side_by_side_and_the_whole_beside_them() -> None:
    whole, tiles = fitted_levels(unplaced([4, 4, 2]), (8, 4), OPEN)
    assert (tiles.frame.right, tiles.frame.bottom, tiles.rows, tiles.cols) == (8, 8, 2, 4)
    assert (whole.frame.bottom, whole.rows, whole.cols, whole.blocks) == (4, 1, 2, ((2, 0, 0),))
    hot = [np.zeros((1, count)) for count in (4, 4, 2)]
    hot[1][0, 1] = 1  # the upper right of the second tile
    values, _ = pixel_map(hot, (tiles,), (8, 4))
    assert values.argmax(1).tolist()[0] >= 6


def test_a_padded_picture_without_tiles_fills_a_part_of_its_grid() -> None:
    (level,) = fitted_levels(unplaced([4]), (8, 4), Fit((2, 2), (2, 2), reach=(1.0, 2.0)))
    assert (level.frame.right, level.frame.bottom) == (8, 8)


def open_maps() -> tuple[Any, tuple[Level, ...]]:
    grid, size = unplaced([4, 4, 2]), (8, 4)
    maps = hand_made(grid=grid, size=size)
    levels = fitted_levels(grid, size, OPEN)
    return dataclasses.replace(maps, images=((MapImage(size, levels, white(size)),),)), levels


def test_maps_of_open_grids_are_saved_shown_and_cut_into_regions(tmp_path: Path) -> None:
    maps, levels = open_maps()
    read = la.AttentionMaps.load(maps.save(tmp_path / "open"))
    assert read.images[0][0].levels == levels
    assert np.array_equal(read[0].pixels(), maps[0].pixels())
    shown = images_of(maps, kept_keys(maps))[0]["levels"]
    first = int(maps.layout.is_patch[0].nonzero()[0])
    assert shown[1]["keys"] == [first + place for place in (0, 1, 4, 5, 2, 3, 6, 7)]
    assert shown[0]["keys"] == [first + 8, first + 9]
    regions = Regions.of(maps, 0, 1)
    assert [place[-1] - first for place in regions.positions] == [0, 1, 4, 5, 2, 3, 6, 7]
