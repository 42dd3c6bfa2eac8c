"""Where patches lie, against marked pictures that go through each family's own processor."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import ImageInputs, family_of
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.maps.geometry import Frame, crops_centre, levels_of, tile_arrangement
from lvlm_attn.maps.maps import assemble, pixel_map, seen, upsample
from lvlm_attn.maps.regions import bounding_box, threshold
from tests.families.test_processors import END_TOKEN, IMAGE_TOKEN, QWEN, START_TOKEN, config, processor

NAMES = ["llava", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl"]
SHAPES = {"square": (640, 640), "wide": (900, 400), "tall": (380, 1000)}


def brightest(name, size, spot):
    """The grid of a black picture with one white spot, and per block how bright each patch is.

    The pixels come from the family's processor; how they are cut into patches is written out here.
    """
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), spot)
    one = f" {START_TOKEN} {IMAGE_TOKEN} {END_TOKEN} " if name in QWEN else f" {IMAGE_TOKEN} "
    inputs = processor(name)(images=[picture], text=["look" + one + "look"], return_tensors="pt")
    grid = family_of(config(name)).grids(ImageInputs(config(name), inputs["input_ids"], inputs))[0]
    pixels = inputs["pixel_values"].numpy()
    if name in QWEN:
        merge = 2
        (_, height, width), cell = inputs["image_grid_thw"][0].tolist(), merge * merge
        patches = pixels.mean(1).reshape(-1, cell).mean(1)
        return picture, grid, [patches.reshape(height // merge, width // merge)]
    tiles = (pixels[0] if pixels.ndim == 5 else pixels).mean(1)
    if name in ("llava", "internvl"):
        return (
            picture,
            grid,
            [shrink(tile, block.rows, block.cols) for tile, block in zip(tiles, grid.blocks)],
        )
    # Any resolution: the mosaic of all tiles, with its padding cut off on both sides alike.
    base, mosaic = grid.blocks
    count = len(tiles) - 1
    settings = config(name)
    best = next_resolution(size, settings.image_grid_pinpoints)
    edge = tiles.shape[-1]
    down, across = best[0] // edge, best[1] // edge
    assert down * across == count
    joined = (
        tiles[1:].reshape(down, across, edge, edge).transpose(0, 2, 1, 3).reshape(down * edge, across * edge)
    )
    scale = min(best[1] / size[0], best[0] / size[1])
    cell = edge / base.rows
    for axis, real in ((0, size[1] * scale), (1, size[0] * scale)):
        spare = int((joined.shape[axis] - real) / 2 // cell * cell)
        joined = np.take(joined, range(spare, joined.shape[axis] - spare), axis)
    return picture, grid, [shrink(tiles[0], base.rows, base.cols), shrink(joined, mosaic.rows, mosaic.cols)]


def next_resolution(size, pinpoints):
    """The resolution that keeps most pixels, and of those the one that wastes least."""

    def quality(best):
        scale = min(best[1] / size[0], best[0] / size[1])
        kept = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return kept, -(best[0] * best[1] - kept)

    return max(pinpoints, key=quality)


def shrink(pixels, rows, cols):
    picture = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32), "F")
    return np.asarray(picture.resize((cols, rows), Image.Resampling.BOX)).astype(float)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_localisation_equivariance(name, shape):
    """What is bright in the patches is where the spot is, in crop, native and tiled grids."""
    size = SHAPES[shape]
    for across, down in ((0.3, 0.35), (0.5, 0.5), (0.62, 0.6)):
        if name == "llava" and shape != "square":
            # The processor sees the middle square only.
            middle = min(size) / 2
            across = 0.5 + (across - 0.5) * 2 * middle / size[0]
            down = 0.5 + (down - 0.5) * 2 * middle / size[1]
        centre = (across * size[0], down * size[1])
        spot = tuple(
            round(value) for value in (centre[0] - 32, centre[1] - 32, centre[0] + 32, centre[1] + 32)
        )
        picture, grid, values = brightest(name, size, spot)
        levels = levels_of(grid, picture.size, config(name), processor(name))
        for level in levels:
            hot = assemble(values, level)
            alone = upsample((hot == hot.max()).astype(float), level.frame, size)
            y, x = np.unravel_index(alone.argmax(), alone.shape)
            cell = (
                (level.frame.right - level.frame.left) / level.cols,
                (level.frame.bottom - level.frame.top) / level.rows,
            )
            assert spot[0] - cell[0] <= x <= spot[2] + cell[0]
            assert spot[1] - cell[1] <= y <= spot[3] + cell[1]
        total, is_seen = pixel_map(values, levels, size)
        box = bounding_box(threshold([total - total.min()], 0.003, [is_seen])[0])
        found = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        assert abs(found[0] - centre[0]) < 20
        assert abs(found[1] - centre[1]) < 20


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["crop", "pad", "native"])
def test_a_hot_cell_lies_in_its_own_pixels(kind, shape):
    """The box of one hot cell has its centre in the pixels of that cell."""
    width, height = SHAPES[shape]
    settings = {
        "crop": SimpleNamespace(
            do_center_crop=True, crop_size={"height": 336, "width": 336}, size={"shortest_edge": 336}
        ),
        "pad": SimpleNamespace(do_pad=True, pad_to_square=None, size={"shortest_edge": 8}),
        "native": SimpleNamespace(size={"height": 8, "width": 8}),
    }[kind]
    short, long = min(width, height), max(width, height)
    edge = {"crop": (short, short), "pad": (long, long), "native": (width, height)}[kind]
    grid = ImageGrid((Block(6, 6, "base"),))
    (level,) = levels_of(grid, (width, height), SimpleNamespace(), settings)
    for row in range(6):
        for col in range(6):
            left = width / 2 - edge[0] / 2 + col * edge[0] / 6
            top = height / 2 - edge[1] / 2 + row * edge[1] / 6
            x, y = left + edge[0] / 12, top + edge[1] / 12
            if not (0 < x < width and 0 < y < height):
                continue
            hot = np.zeros((6, 6))
            hot[row, col] = 1
            values, is_seen = pixel_map([hot], (level,), (width, height))
            box = bounding_box(threshold([values], 0.01, [is_seen])[0])
            assert left <= (box[0] + box[2]) / 2 <= left + edge[0] / 6
            assert top <= (box[1] + box[3]) / 2 <= top + edge[1] / 6


def test_centre_crop_sees_the_middle_square():
    settings = SimpleNamespace(
        do_center_crop=True, crop_size={"height": 8, "width": 8}, size={"shortest_edge": 8}
    )
    assert crops_centre(settings)
    (level,) = levels_of(ImageGrid((Block(4, 4, "base"),)), (100, 40), SimpleNamespace(), settings)
    assert level.frame == Frame(30, 0, 70, 40)
    is_seen = seen(level.frame, (100, 40))
    assert is_seen.sum() == 1600
    assert is_seen[:, 30:70].all()


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "qwen2_5_vl"])
def test_other_families_see_the_whole_image(name):
    assert not crops_centre(processor(name))


def test_tiles_that_do_not_fit_are_refused():
    settings = SimpleNamespace(size={"height": 448, "width": 448}, min_patches=1, max_patches=12)
    assert tile_arrangement(2, (900, 450), settings) == (2, 1)
    with pytest.raises(UnsupportedError, match="came as 5 tiles"):
        tile_arrangement(5, (900, 450), settings)


def test_frames_of_a_video_are_refused():
    grid = ImageGrid((Block(2, 2, "frame"),) * 2)
    with pytest.raises(UnsupportedError, match="several frames"):
        levels_of(grid, (10, 10), SimpleNamespace(), SimpleNamespace(size={}))
