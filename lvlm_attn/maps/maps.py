"""Maps of attention over an image: contrast, fusion, and from patches to pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.geometry import Frame, Level

Map = NDArray[np.float64]
Mask = NDArray[np.bool_]


def contrast(question: Map, general: Map, lam: float = 1e-8, lam_rel: float | None = None) -> Map:
    """Divides the attention of a question by that of a general instruction.

    `question / (general + lam)` is the one minimum of `sum((X * general - question)^2) + lam * sum(X^2 * general)`.

    Source: CARVE (arXiv 2509.06461), section 4.

    Args:
        question: attention on image tokens, any shape.
        general: attention on the same tokens under the general instruction, same shape.
        lam: strength of the regularisation, in units of attention.
        lam_rel: the same relative to the mean of `general` over its last axis; replaces `lam`.

    Returns:
        The contrast, same shape; 0 where both attentions are 0.

    Example:
        >>> contrast(np.array([0.2, 0.1]), np.array([0.1, 0.1]), lam=0.0).tolist()
        [2.0, 1.0]
    """
    if question.shape != general.shape:
        raise LvlmAttnError(f"Attention of shape {question.shape} cannot be contrasted with {general.shape}.")
    floor = lam if lam_rel is None else lam_rel * general.mean(-1, keepdims=True)
    below = general + floor
    return np.divide(question, below, out=np.zeros_like(question, dtype=np.float64), where=below > 0)


def assemble(values: Sequence[Map], level: Level) -> Map:
    """Puts the blocks `(rows, cols)` of an image together into the grid of one level."""
    grid = np.zeros((level.rows, level.cols))
    for block, row, col in level.blocks:
        part = level.placed(values[block])
        grid[row : row + part.shape[0], col : col + part.shape[1]] = part
    return grid


def upsample(grid: Map, frame: Frame, size: tuple[int, int]) -> Map:
    """Spreads a grid over the pixels of an image, bilinearly between the centres of its cells.

    Pixels between the outermost centres and the edge take the value of the nearest cell; pixels outside
    the frame are 0.

    Args:
        grid: `(rows, cols)`.
        frame: where the grid lies in the image.
        size: width and height of the image.

    Returns:
        `(height, width)`.

    Example:
        >>> upsample(np.array([[1.0, 3.0]]), Frame(0, 0, 4, 1), (4, 1)).tolist()
        [[1.0, 1.5, 2.5, 3.0]]
    """
    width, height = size
    down = _weights(grid.shape[0], frame.top, frame.bottom, height)
    across = _weights(grid.shape[1], frame.left, frame.right, width)
    return down @ grid @ across.T


def spread(grid: Map, frame: Frame, size: tuple[int, int]) -> Map:
    """Spreads a grid over the pixels of an image so that the sum of every cell stays what it is.

    A cell's mass lies evenly on the part of the image that it covers; cells beyond the image's edge are left
    out. Cells may be larger or smaller than a pixel.

    Args:
        grid: `(rows, cols)`.
        frame: where the grid lies in the image.
        size: width and height of the image.

    Returns:
        `(height, width)`, with the sum of the grid's cells that show any of the image.

    Example:
        >>> spread(np.array([[1.0, 3.0]]), Frame(0, 0, 4, 1), (4, 1)).tolist()
        [[0.5, 0.5, 1.5, 1.5]]
        >>> spread(np.array([[1.0, 3.0]]), Frame(-1, 0, 3, 1), (3, 1)).tolist()
        [[1.0, 1.5, 1.5]]
    """
    width, height = size
    down = _shares(grid.shape[0], frame.top, frame.bottom, height)
    across = _shares(grid.shape[1], frame.left, frame.right, width)
    return down @ grid @ across.T


def paint(grid: Map, frame: Frame, size: tuple[int, int]) -> Map:
    """Gives every pixel the value of the cell it lies in, the mean of several by area; 0 outside the frame.

    For ratios and other values that must not be divided among pixels; masses are spread by `spread`.

    Args:
        grid: `(rows, cols)`.
        frame: where the grid lies in the image.
        size: width and height of the image.

    Returns:
        `(height, width)`.

    Example:
        >>> paint(np.array([[1.0, 3.0]]), Frame(0, 0, 4, 1), (4, 1)).tolist()
        [[1.0, 1.0, 3.0, 3.0]]
    """
    width, height = size
    down = _row_means(_overlaps(grid.shape[0], frame.top, frame.bottom, height))
    across = _row_means(_overlaps(grid.shape[1], frame.left, frame.right, width))
    painted: Map = down @ grid @ across.T
    return painted


def seen(frame: Frame, size: tuple[int, int]) -> Mask:
    """`(height, width)`, True at pixels whose centre lies in the frame."""
    width, height = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    in_x, in_y = (x >= frame.left) & (x < frame.right), (y >= frame.top) & (y < frame.bottom)
    return in_y[:, None] & in_x[None, :]


def pixel_map(values: Sequence[Map], levels: Sequence[Level], size: tuple[int, int]) -> tuple[Map, Mask]:
    """Adds up the levels of an image in pixels.

    Args:
        values: per block of the image `(rows, cols)`.
        levels: where the blocks lie.
        size: width and height of the image.

    Returns:
        The map `(height, width)`, and True at the pixels that some level shows.
    """
    total, is_seen = np.zeros((size[1], size[0])), np.zeros((size[1], size[0]), dtype=bool)
    for level in levels:
        total += upsample(assemble(values, level), level.frame, size)
        is_seen |= seen(level.frame, size)
    return total, is_seen


def entropy(weights: Map) -> float:
    """Entropy in nats of non-negative weights, normalised to sum 1 first; 0 if all are 0.

    Example:
        >>> round(entropy(np.ones(4)), 4)
        1.3863
    """
    total = weights.sum()
    if total <= 0:
        return 0.0
    share = weights[weights > 0] / total
    return float(-(share * np.log(share)).sum() + 0.0)


def _overlaps(cells: int, start: float, stop: float, pixels: int) -> Map:
    """`(pixels, cells)`: how much of each cell's length lies in each pixel, both in pixels."""
    edges = np.linspace(start, stop, cells + 1)
    pixel = np.arange(pixels)[:, None]
    overlap: Map = np.clip(np.minimum(edges[1:], pixel + 1) - np.maximum(edges[:-1], pixel), 0, None)
    return overlap


def _shares(cells: int, start: float, stop: float, pixels: int) -> Map:
    """`(pixels, cells)`: which share of a cell's visible length lies in each pixel; columns sum to 1, or 0."""
    overlap = _overlaps(cells, start, stop, pixels)
    length = overlap.sum(0)
    is_visible = length > 1e-6 * (stop - start) / cells  # less is rounding
    return np.where(is_visible, overlap / np.where(is_visible, length, 1), 0.0)


def _row_means(overlap: Map) -> Map:
    total = overlap.sum(1, keepdims=True)
    means: Map = np.divide(overlap, total, out=np.zeros_like(overlap), where=total > 0)
    return means


def _weights(cells: int, start: float, stop: float, pixels: int) -> Map:
    """`(pixels, cells)`: the share of each cell in each pixel; rows outside `start..stop` are 0."""
    centre = np.arange(pixels) + 0.5
    place = np.clip((centre - start) / (stop - start) * cells - 0.5, 0, cells - 1)
    lower = np.minimum(place.astype(int), max(cells - 2, 0))
    part = place - lower
    weights = np.zeros((pixels, cells))
    index = np.arange(pixels)
    weights[index, lower] = 1 - part
    if cells > 1:
        weights[index, lower + 1] += part
    weights[(centre < start) | (centre >= stop)] = 0
    return weights
