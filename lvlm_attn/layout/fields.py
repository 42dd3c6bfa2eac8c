"""The tensors of a layout, made from image tokens and the grids of their images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lvlm_attn.layout.grids import ImageGrid, Kind


@dataclass(frozen=True)
class Piece:
    """The tokens `start:stop` of image number `image` of a sample."""

    grid: ImageGrid
    image: int
    start: int
    stop: int


def fields_of(is_image: Tensor, is_valid: Tensor, pieces: list[Piece]) -> Tensor:
    """`(5, batch, length)`: kind, image, block, row and column of every position."""
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
    return fields.view(5, *is_image.shape)


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
