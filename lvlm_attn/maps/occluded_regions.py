"""An image cut into regions, each with its patches and its place in pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lvlm_attn.maps.onto_image import MapImage, patch_positions

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_MOST = 12  # regions along a side, where nothing else is asked for


@dataclass(frozen=True)
class Regions:
    """Regions of an image, row by row.

    Attributes:
        shape: rows and columns of regions.
        positions: the key positions of the patches in each.
        boxes: left, top, right and bottom of each in pixels.
    """

    shape: tuple[int, int]
    positions: list[list[int]]
    boxes: list[tuple[float, float, float, float]]

    @staticmethod
    def of(maps: AttentionMaps, number: int, cells: int | None) -> Regions:
        """Cuts the finest level into squares of cells; patches of other levels belong where their middle lies."""
        blocks = patch_positions(maps, number)
        known = maps.images[0][number] if maps.images else MapImage()
        if known.levels is None:
            rows, cols = blocks[0].shape
            side = cells or math.ceil(max(rows, cols) / _MOST)
            found = Regions._empty(rows, cols, side, (0.0, 0.0, float(cols), float(rows)))
            for (row, col), position in np.ndenumerate(blocks[0]):
                found.positions[row // side * found.shape[1] + col // side].append(int(position))
            return found
        fine = known.levels[-1]
        side = cells or math.ceil(max(fine.rows, fine.cols) / _MOST)
        frame = fine.frame
        found = Regions._empty(fine.rows, fine.cols, side, (frame.left, frame.top, frame.right, frame.bottom))
        for level in known.levels:
            high = (level.frame.bottom - level.frame.top) / level.rows
            wide = (level.frame.right - level.frame.left) / level.cols
            for block, top, left in level.blocks:
                for (row, col), position in np.ndenumerate(level.placed(blocks[block])):
                    x, y = (
                        level.frame.left + (left + col + 0.5) * wide,
                        level.frame.top + (top + row + 0.5) * high,
                    )
                    across = int((x - frame.left) / (frame.right - frame.left) * fine.cols) // side
                    down = int((y - frame.top) / (frame.bottom - frame.top) * fine.rows) // side
                    across = min(max(across, 0), found.shape[1] - 1)
                    down = min(max(down, 0), found.shape[0] - 1)
                    found.positions[down * found.shape[1] + across].append(int(position))
        return found

    @staticmethod
    def _empty(rows: int, cols: int, side: int, frame: tuple[float, float, float, float]) -> Regions:
        left, top, right, bottom = frame
        shape = (math.ceil(rows / side), math.ceil(cols / side))
        wide, high = (right - left) / cols * side, (bottom - top) / rows * side
        boxes = [
            (
                left + col * wide,
                top + row * high,
                min(left + (col + 1) * wide, right),
                min(top + (row + 1) * high, bottom),
            )
            for row in range(shape[0])
            for col in range(shape[1])
        ]
        return Regions(shape, [[] for _ in boxes], boxes)
