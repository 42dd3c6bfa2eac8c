"""The tensors of a layout, made from image tokens and the grids of their images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from lvlm_attn.layout.grids import ImageGrid, Kind


@dataclass(frozen=True)
class Piece:
    """The tokens `start:stop` of image number `image` of a sample."""

    grid: ImageGrid
    image: int
    start: int
    stop: int


EDGES = 2
"""Most tokens of an image's own in a row at either end of it."""


def fields_of(
    is_image: Tensor,
    is_valid: Tensor,
    pieces: list[Piece],
    *,
    marks_between: bool,
    is_edge: Tensor | None,
) -> Tensor:
    """`(5, batch, length)`: kind, image, block, row and column of every position.

    Args:
        is_image: `(batch, length)`, True at image tokens.
        is_valid: `(batch, length)`, False at padding.
        pieces: the images of all rows, in flat order.
        marks_between: whether other tokens between those of one image are its fillers.
        is_edge: `(batch, length)`, True at tokens that are fillers of the image right before or after them.
    """
    fields = torch.full((5, is_image.numel()), -1, device=is_image.device)
    fields[0] = torch.where(is_valid, int(Kind.TEXT), int(Kind.PAD)).flatten()
    if pieces:
        where = is_image.flatten().nonzero().flatten()
        values = torch.cat([_template(piece.grid)[:, piece.start : piece.stop] for piece in pieces], 1)
        sizes = torch.tensor([piece.stop - piece.start for piece in pieces])
        image = torch.tensor([piece.image for piece in pieces]).repeat_interleave(sizes)
        values = torch.cat((values[:1], image[None], values[1:])).to(is_image.device)
        fields.scatter_(1, where.expand(5, -1), values)
    hidden = (is_image & ~is_valid).flatten()
    if bool(hidden.any()):
        fields[0, hidden] = int(Kind.PAD)
        fields[1:, hidden] = -1
    fields = fields.view(5, *is_image.shape)
    if marks_between and pieces:
        _give(fields, _image_around(fields[1]))
    for _ in range(EDGES if is_edge is not None and pieces else 0):
        after = nn.functional.pad(fields[1][:, 1:], (0, 1), value=-1)
        before = nn.functional.pad(fields[1][:, :-1], (1, 0), value=-1)
        _give(fields, torch.where(cast("Tensor", is_edge), torch.where(before >= 0, before, after), -1))
    return fields


def _give(fields: Tensor, owner: Tensor) -> None:
    """Makes text with an owner `(batch, length)` of 0 or more a filler of that image."""
    is_mark = (fields[0] == int(Kind.TEXT)) & (owner >= 0)
    fields[0] = torch.where(is_mark, int(Kind.FILLER), fields[0])
    fields[1] = torch.where(is_mark, owner, fields[1])


def _image_around(image: Tensor) -> Tensor:
    """`(batch, length)`: the image that stands on both sides of a position, -1 where there is none.

    Example:
        >>> _image_around(torch.tensor([[-1, 0, -1, 0, -1, 1, 1, -1]])).tolist()
        [[-1, 0, 0, 0, -1, 1, 1, -1]]
    """
    before = image.cummax(1).values
    after = torch.where(image >= 0, image, torch.iinfo(image.dtype).max).flip(1).cummin(1).values.flip(1)
    return torch.where(before == after, before, -1)


@lru_cache(maxsize=256)
def _template(grid: ImageGrid) -> Tensor:
    """`(4, tokens)`: kind, block, row and column of the tokens of one image, in order."""
    pieces = [_fillers(grid.leading_fillers)]
    for index, block in enumerate(grid.blocks):
        width = block.cols + block.newline
        row = torch.arange(block.rows).repeat_interleave(width)
        col = torch.arange(width).repeat(block.rows)
        kind = torch.full_like(row, int(Kind.PATCH))
        piece = torch.stack((kind, torch.full_like(row, index), row, col))
        piece[:, col == block.cols] = torch.tensor([int(Kind.FILLER), -1, -1, -1])[:, None]
        pieces.append(piece)
    pieces.append(_fillers(grid.trailing_fillers))
    return torch.cat(pieces, 1)


def _fillers(count: int) -> Tensor:
    return torch.tensor([int(Kind.FILLER), -1, -1, -1])[:, None].repeat(1, count)
