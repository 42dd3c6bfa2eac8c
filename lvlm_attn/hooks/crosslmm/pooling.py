"""Pooling the patches of an image to a few tokens that keep a place of their own in the sequence.

A grid of patches is cut into cells, and the patch in the middle of a cell takes the features of the whole cell. The
other patches stay where they are but nobody attends to them, so that text keeps its positions and caches their lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_attn.layout.grids import Block
from lvlm_attn.layout.prompt import PromptLayout

POOLS = ("avg_cells", "bilinear")


def cells(size: int, count: int) -> list[tuple[int, int]]:
    """Cuts `size` patches in a line into at most `count` cells, which overlap where it does not divide.

    These are the cells of `torch.nn.functional.adaptive_avg_pool2d`.

    Returns:
        First patch and the one after the last, of every cell.

    Example:
        >>> cells(5, 3)
        [(0, 2), (1, 4), (3, 5)]
    """
    count = min(size, count)
    return [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]


def centres(size: int, count: int) -> list[int]:
    """The middle patch of every cell, the earlier of two.

    Example:
        >>> centres(12, 3)
        [1, 5, 9]
    """
    return [(start + stop - 1) // 2 for start, stop in cells(size, count)]


def pool_block(features: Tensor, grid: tuple[int, int], pool: str = "avg_cells") -> Tensor:
    """Pools the features of a rectangle of patches.

    Args:
        features: `(rows, cols, hidden)`.
        grid: how many cells from top to bottom and from left to right, at most; a side of fewer patches keeps
            them all.
        pool: `"avg_cells"` takes the mean of each cell; `"bilinear"` samples between patches around the middle
            of each cell, without smoothing first.

    Returns:
        `(cells down, cells across, hidden)`. A block that is not larger than the grid comes back bit by bit.

    Source: Yan et al., "CrossLMM" (arXiv 2505.17020), section 3.2, which calls it bilinear pooling and describes
    the mean over local patches; the mean is the default here.
    """
    rows, cols = features.shape[:2]
    size = min(rows, grid[0]), min(cols, grid[1])
    if size == (rows, cols):
        return features
    dtype = torch.promote_types(features.dtype, torch.float32)
    image = features.to(dtype).permute(2, 0, 1)[None]
    if pool == "bilinear":
        found = F.interpolate(image, size=size, mode="bilinear", align_corners=False)
    else:
        found = F.adaptive_avg_pool2d(image, size)
    return found[0].permute(1, 2, 0).to(features.dtype)


def blocks_of(layout: PromptLayout, start: int) -> Iterator[tuple[int, Tensor, Block]]:
    """Goes through the blocks of patches from position `start` on, in the order of rows and positions.

    Returns:
        The row of the batch, the positions of the patches `(block.patches,)` in row-major order, and the block.
    """
    for sample, grids in enumerate(layout.grids):
        patches = layout.is_patch[sample]
        for image, grid in enumerate(grids):
            of_image = patches & (layout.image[sample] == image)
            for number, block in enumerate(grid.blocks):
                found = (of_image & (layout.block[sample] == number)).nonzero().flatten()
                if len(found) == block.patches > 0 and int(found[0]) >= start:
                    yield sample, found, block


def block_centres(positions: Tensor, block: Block, grid: tuple[int, int]) -> Tensor:
    """The positions among `positions` that stand for the cells of a block, row by row."""
    square = positions.view(block.rows, block.cols)
    rows = torch.tensor(centres(block.rows, grid[0]), device=positions.device)
    cols = torch.tensor(centres(block.cols, grid[1]), device=positions.device)
    return square[rows][:, cols].flatten()


def pooled_positions(layout: PromptLayout, grid: tuple[int, int]) -> Tensor:
    """`(batch, length)`, True at the patches that stand for a cell of their block.

    Images and their blocks (the small picture of the whole and the tiles) are pooled one by one; fillers such as
    the newline after a row of tiles are no patches and stay.
    """
    is_pooled = torch.zeros_like(layout.is_patch)
    for sample, positions, block in blocks_of(layout, 0):
        is_pooled[sample, block_centres(positions, block, grid)] = True
    return is_pooled


def pool_features(
    features: Tensor, layout: PromptLayout, start: int, grid: tuple[int, int], pool: str = "avg_cells"
) -> Tensor:
    """Puts the pooled features of every block at the middle patches of its cells.

    Args:
        features: `(batch, queries, hidden)`, of the positions from `start` on, images in place.
        layout: of all positions up to the last query.
        start: position of the first query.
        grid: see `pool_block`.
        pool: see `pool_block`.

    Returns:
        A tensor of the same shape; all other positions stay bit-identical.
    """
    pooled = features.clone()
    for sample, positions, block in blocks_of(layout, start):
        places = (positions - start).to(features.device)
        square = features[sample, places].view(block.rows, block.cols, -1)
        kept = (block_centres(positions, block, grid) - start).to(features.device)
        pooled[sample, kept] = pool_block(square, grid, pool).flatten(0, 1)
    return pooled
