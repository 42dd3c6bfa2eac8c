"""Where the patches of an image lie in its original pixels, as its processor cut, padded or tiled it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from transformers.image_processing_utils import select_best_resolution

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import models
from lvlm_attn.families.anyres import base_block, unpadded
from lvlm_attn.families.family import side
from lvlm_attn.families.fits import Fit, Rectangle, arrangements, nearest_shape
from lvlm_attn.layout.grids import ImageGrid


@dataclass(frozen=True)
class Frame:
    """A rectangle in pixels of the original image, which may reach beyond it or leave some of it out.

    Attributes:
        left: where it begins, in pixels from the left edge of the image.
        top: where it begins, in pixels from the upper edge.
        right: where it ends.
        bottom: where it ends.
    """

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Level:
    """The image once over as a grid of patches; images in tiles have a second, finer level.

    Attributes:
        frame: the rectangle that the grid covers.
        rows: patches from top to bottom.
        cols: patches from left to right.
        blocks: the blocks of the image's grid that it is put together of, as (block, first row, first column).
        shape: rows and columns of each of them, where the grid of the image leaves them open.
    """

    frame: Frame
    rows: int
    cols: int
    blocks: tuple[tuple[int, int, int], ...]
    shape: tuple[int, int] | None = None

    def placed(self, block: NDArray[Any]) -> NDArray[Any]:
        """A block of the image's grid in its rows and columns."""
        return block if self.shape is None else block.reshape(self.shape)


def levels_of(grid: ImageGrid, size: tuple[int, int], config: Any, processor: Any) -> tuple[Level, ...]:
    """Says where the patches of one image lie.

    Args:
        grid: the image's grid.
        size: width and height of the original image.
        config: the model's configuration.
        processor: the model's processor, or its image processor.

    Returns:
        The levels, the coarse one first.

    Raises:
        UnsupportedError: if the grid holds several frames, or tiles whose arrangement is not known, or if the
            family is one whose pictures are not followed through their processor.

    Example:
        >>> from types import SimpleNamespace as Settings
        >>> from lvlm_attn.layout.grids import Block
        >>> crop = Settings(do_center_crop=True, crop_size={"height": 8, "width": 8}, size={"shortest_edge": 8})
        >>> levels_of(ImageGrid((Block(2, 2, "base"),)), (30, 10), Settings(), crop)[0].frame
        Frame(left=10.0, top=0.0, right=20.0, bottom=10.0)
    """
    family = models().get(getattr(config, "model_type", ""))
    if family is not None and not family.places:
        raise UnsupportedError(
            f"Where the patches of {family.title} lie in a picture is not known here, since its processor tiles or "
            f"pads pictures in a way of its own; use a method that needs no maps."
        )
    images = getattr(processor, "image_processor", processor)
    if family is not None and family.fit is not None:
        return fitted_levels(grid, size, family.fit(grid, size, config, images))
    whole = Frame(0.0, 0.0, float(size[0]), float(size[1]))
    coarse: list[Level] = []
    fine: list[Level] = []
    tiles = [index for index, block in enumerate(grid.blocks) if block.kind == "tile"]
    for index, block in enumerate(grid.blocks):
        if block.kind == "frame":
            raise UnsupportedError(
                "An image of several frames has no single place for a patch; pass frames as images."
            )
        if block.kind == "base":
            frame = _base_frame(grid, size, config, images)
            coarse.append(Level(frame, block.rows, block.cols, ((index, 0, 0),)))
        elif block.kind == "thumbnail":
            coarse.append(Level(whole, block.rows, block.cols, ((index, 0, 0),)))
        elif block.kind == "tiles":
            fine.append(Level(anyres_frame(size, config), block.rows, block.cols, ((index, 0, 0),)))
    if tiles:
        known = [(grid.blocks[index].tile_row, grid.blocks[index].tile_col) for index in tiles]
        if all(row is not None and col is not None for row, col in known):
            down, across = (1 + max(int(place[axis] or 0) for place in known) for axis in (0, 1))
        else:
            across, down = tile_arrangement(len(tiles), size, images)
        rows, cols = grid.blocks[tiles[0]].rows, grid.blocks[tiles[0]].cols
        places = tuple((index, k // across * rows, k % across * cols) for k, index in enumerate(tiles))
        fine.append(Level(whole, down * rows, across * cols, places))
    return (*coarse, *fine)


def fitted_levels(grid: ImageGrid, size: tuple[int, int], fit: Fit) -> tuple[Level, ...]:
    """The levels of an image whose processor tells how it is fitted.

    Args:
        grid: the image's grid: tiles and the whole.
        size: width and height of the original image.
        fit: what the processor makes of such an image.

    Raises:
        UnsupportedError: if the grid has other blocks.

    Example:
        >>> from lvlm_attn.layout.grids import Block
        >>> fitted_levels(ImageGrid((Block(1, 6, "unplaced"),)), (30, 20), Fit((2, 3), (2, 3)))[0].rows
        2
    """
    given, expected = ([block.patches for block in grid.blocks], [rows * cols for rows, cols in fit.shapes])
    if given != expected:
        raise UnsupportedError(
            f"An image of {size[0]} x {size[1]} pixels came as blocks of {given} tokens, but the processor makes "
            f"{expected} of it; use the processor that made the inputs, with its own settings."
        )
    width, height = float(size[0]), float(size[1])
    reach = Rectangle(right=fit.reach[0], bottom=fit.reach[1])
    count = fit.across * fit.down
    first = int(fit.is_whole_first and fit.whole is not None)
    is_open = any(block.kind == "unplaced" for block in grid.blocks)
    levels = []
    if fit.whole is not None:
        frame = _frame(fit.whole_covers or (Rectangle() if count else reach), width, height)
        block = 0 if first else count
        levels.append(Level(frame, *fit.whole, ((block, 0, 0),), fit.whole if is_open else None))
    if count:
        rows, cols = fit.tile
        frame = _frame(fit.tiles_cover or reach, width, height)
        places = tuple((first + k, k // fit.across * rows, k % fit.across * cols) for k in range(count))
        levels.append(Level(frame, fit.down * rows, fit.across * cols, places, fit.tile if is_open else None))
    return tuple(levels)


def _frame(covers: Rectangle, width: float, height: float) -> Frame:
    return Frame(covers.left * width, covers.top * height, covers.right * width, covers.bottom * height)


def crops_centre(processor: Any) -> bool:
    """Whether the processor leaves out the ends of an image that is not square."""
    images = getattr(processor, "image_processor", processor)
    return (
        bool(getattr(images, "do_center_crop", False))
        and _entry(getattr(images, "size", None), "shortest_edge") is not None
        and not getattr(images, "do_pad", False)
        and getattr(images, "image_grid_pinpoints", None) is None
    )


def _base_frame(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Frame:
    width, height = size
    whole = Frame(0.0, 0.0, float(width), float(height))
    if getattr(config, "image_grid_pinpoints", None) is not None:
        # LLaVA-OneVision pads an image to a square where it gives it no tiles; a lone newline tells which.
        is_alone = len(grid.blocks) == 1 and grid.trailing_fillers == 1
        return _square(width, height, max(width, height)) if is_alone else whole
    if getattr(images, "do_pad", False) is True and hasattr(images, "pad_to_square"):
        # Janus scales the longer side down first, and keeps the shorter one from vanishing.
        least = getattr(images, "min_size", None)
        return (
            _square(width, height, max(width, height))
            if least is None
            else _letterbox(size, images, int(least))
        )
    if crops_centre(images):
        edge = int(_entry(images.size, "shortest_edge"))
        crop = getattr(images, "crop_size", None)
        short, long = edge, int(edge * max(width, height) / min(width, height))
        scaled = (short, long) if width <= height else (long, short)
        return _window(
            size, scaled, (int(_entry(crop, "width") or edge), int(_entry(crop, "height") or edge))
        )
    return whole


def _square(width: int, height: int, edge: int) -> Frame:
    """The square of whole pixels that an image is padded to; an odd pixel goes to the right or below."""
    left, top = -((edge - width) // 2), -((edge - height) // 2)
    return Frame(float(left), float(top), float(left + edge), float(top + edge))


def _letterbox(size: tuple[int, int], images: Any, least: int) -> Frame:
    edge = int(_entry(images.size, "height"))
    scale = edge / max(size)
    wide, high = (max(round(side * scale), least) for side in size)
    full = max(wide, high)
    left, top = -((full - wide) // 2), -((full - high) // 2)
    to_x, to_y = size[0] / wide, size[1] / high
    return Frame(left * to_x, top * to_y, (left + full) * to_x, (top + full) * to_y)


def _window(size: tuple[int, int], scaled: tuple[int, int], crop: tuple[int, int]) -> Frame:
    """The middle that is cut out of a scaled image, in pixels of the original: whole pixels of the scaled one."""
    (left, right), (top, bottom) = (
        (start * whole / new, (start + kept) * whole / new)
        for whole, new, kept in zip(size, scaled, crop)
        for start in [(new - kept) // 2]
    )
    return Frame(left, top, right, bottom)


def anyres_frame(size: tuple[int, int], config: Any) -> Frame:
    """The rectangle that the unpadded mosaic of an any-resolution image covers.

    The image is fitted into the best resolution and padded; whole rows and columns of padding are cut off
    again, so the mosaic may keep up to one patch of padding on each side.

    Source: LLaVA-NeXT (https://llava-vl.github.io/blog/2024-01-30-llava-next).

    Args:
        size: width and height of the original image.
        config: the model's configuration.
    """
    width, height = size
    base, edge = base_block(config), side(config.vision_config.image_size)[0]
    target_height, target_width = select_best_resolution((height, width), config.image_grid_pinpoints)
    across, down = target_width / width, target_height / height
    if across < down:
        new_width, new_height = target_width, min(math.ceil(height * across), target_height)
    else:
        new_width, new_height = min(math.ceil(width * down), target_width), target_height
    pad_x, pad_y = (target_width - new_width) // 2, (target_height - new_height) // 2
    rows, cols = base.rows * (target_height // edge), base.cols * (target_width // edge)
    kept_rows, kept_cols = unpadded((height, width), rows, cols)
    cell_y, cell_x = target_height / rows, target_width / cols
    top, left = (rows - kept_rows) / 2 * cell_y - pad_y, (cols - kept_cols) / 2 * cell_x - pad_x
    to_x, to_y = width / new_width, height / new_height
    return Frame(
        left * to_x, top * to_y, (left + kept_cols * cell_x) * to_x, (top + kept_rows * cell_y) * to_y
    )


def tile_arrangement(count: int, size: tuple[int, int], images: Any) -> tuple[int, int]:
    """How many tiles lie side by side and one below another in an InternVL image.

    The arrangement nearest in shape to the image is taken, see `nearest_shape`.

    Args:
        count: number of tiles, the thumbnail not counted.
        size: width and height of the original image.
        images: the image processor, for the size of a tile and the limits.

    Raises:
        UnsupportedError: if the processor's arrangement has another number of tiles.
    """
    width, height = size
    tile = float(_entry(images.size, "height") * _entry(images.size, "width"))
    low, high = int(getattr(images, "min_patches", 1)), int(getattr(images, "max_patches", 12))
    best = nearest_shape(arrangements(low, high), size, tile)
    if best[0] * best[1] != count:
        raise UnsupportedError(
            f"An image of {width} x {height} pixels came as {count} tiles, but the processor arranges it as "
            f"{best[0]} x {best[1]}; use the processor that made the inputs, with its own settings."
        )
    return best


def _entry(size: Any, key: str) -> Any:
    """An entry of a processor's size, which is a mapping or an object."""
    if size is None:
        return None
    if isinstance(size, Mapping):
        return size.get(key)
    try:
        return getattr(size, key)
    except AttributeError as error:
        raise LvlmAttnError(f"The image processor's size {size!r} has no {key!r}.") from error
