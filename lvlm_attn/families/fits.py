"""How a processor fits a picture into tiles and tokens, where the prompt does not tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Rectangle:
    """A rectangle in widths and heights of a picture, from its upper left corner.

    Attributes:
        left: where it begins, below 0 where it begins before the picture.
        top: where it begins.
        right: where it ends, above 1 where it ends behind the picture.
        bottom: where it ends.
    """

    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


@dataclass(frozen=True)
class Fit:
    """How a picture becomes tiles, row by row, and then the whole of it.

    Attributes:
        tile: rows and columns of tokens of a tile.
        whole: rows and columns of tokens of the whole picture beside its tiles, or of a picture without tiles; None
            where tiles stand alone.
        across: tiles side by side; 0 without tiles.
        down: tiles one below another; 0 without tiles.
        reach: width and height of what the tiles cover, in widths and heights of the picture: above 1 where a
            picture is padded at the right or below. Of a picture without tiles, what `whole` covers.
        whole_covers: what the whole picture's tokens cover where it is not all of it; None where `reach` tells.
        tiles_cover: what the tiles cover; None where `reach` tells.
        is_whole_first: whether the whole picture stands before its tiles.
    """

    tile: tuple[int, int]
    whole: tuple[int, int] | None
    across: int = 0
    down: int = 0
    reach: tuple[float, float] = (1.0, 1.0)
    whole_covers: Rectangle | None = None
    tiles_cover: Rectangle | None = None
    is_whole_first: bool = False

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of each block in token order: tiles and the whole, which comes last or first."""
        tiles = [self.tile] * (self.across * self.down)
        whole = [] if self.whole is None else [self.whole]
        return whole + tiles if self.is_whole_first else tiles + whole


def arrangements(least: int, most: int) -> list[tuple[int, int]]:
    """All `(across, down)` of `least` to `most` tiles, fewer tiles first.

    Example:
        >>> arrangements(1, 2)
        [(1, 1), (1, 2), (2, 1)]
    """
    pairs = [(a, d) for a in range(1, most + 1) for d in range(1, most + 1) if least <= a * d <= most]
    return sorted(pairs, key=math.prod)


def nearest_shape(pairs: Sequence[tuple[int, int]], size: tuple[int, int], tile: float) -> tuple[int, int]:
    """The arrangement nearest in shape to a picture.

    Of equally near ones a later, larger one is taken as long as the picture has more than half its pixels.

    Source: InternVL (arXiv 2404.16821), section 3.2.

    Args:
        pairs: `(across, down)`, fewer tiles first.
        size: width and height of the picture.
        tile: pixels of a tile.

    Example:
        >>> nearest_shape(arrangements(1, 4), (900, 450), 448 * 448)
        (2, 1)
    """
    width, height = size
    best, least = (1, 1), math.inf
    for across, down in pairs:
        distance = abs(width / height - across / down)
        if distance < least or (distance == least and width * height > 0.5 * tile * across * down):
            best, least = (across, down), distance
    return best
