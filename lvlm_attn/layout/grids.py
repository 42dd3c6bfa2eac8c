"""How one image is spread over tokens: its blocks of patches and the fillers between them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from numbers import Integral
from typing import Any, Literal, get_args

from lvlm_attn.errors import LvlmAttnError, closest, shown

BlockKind = Literal["base", "tiles", "tile", "thumbnail", "frame", "unplaced"]


class Kind(IntEnum):
    """What a position of a sequence is.

    A FILLER belongs to an image but shows no place of it: the newline after a row, a class token, the break or
    marker between its tiles.
    """

    PAD = 0
    TEXT = 1
    PATCH = 2
    FILLER = 3
    GENERATED = 4


@dataclass(frozen=True)
class Block:
    """A rectangle of patches in row-major order.

    Attributes:
        rows: patches from top to bottom.
        cols: patches from left to right.
        kind: `base`, the whole image scaled to one square; `tiles`, the whole image at high resolution, its
            tiles put together; `tile`, one tile of it; `thumbnail`, the whole image beside its tiles;
            `frame`, one frame of several, or a few together; `unplaced`, tokens whose rows and columns are not known.
        newline: whether one filler stands after each row.
        tile_row: row of a `tile` among the tiles, if known.
        tile_col: column of a `tile` among the tiles, if known.
        time: which `frame` of a video it is, from 0; None if it is of no video.
        frames: how many frames of the video it shows; where it is several, `time` counts such groups.

    Raises:
        LvlmAttnError: if rows or columns are no whole numbers from 0 on, or the kind is none of these.
    """

    rows: int
    cols: int
    kind: BlockKind
    newline: bool = False
    tile_row: int | None = None
    tile_col: int | None = None
    time: int | None = None
    frames: int = 1

    def __post_init__(self) -> None:
        for name in ("rows", "cols"):
            if not _is_count(getattr(self, name)):
                raise LvlmAttnError(
                    f"Block: {name}={shown(getattr(self, name))} must be a whole number from 0 on."
                )
        if self.kind not in get_args(BlockKind):
            raise LvlmAttnError(
                f"Block: kind={shown(self.kind)} must be one of {', '.join(get_args(BlockKind))}."
                f"{closest(str(self.kind), get_args(BlockKind))}"
            )

    @property
    def patches(self) -> int:
        """Tokens that show a place of the image."""
        return self.rows * self.cols

    @property
    def tokens(self) -> int:
        """All tokens, newlines included."""
        return self.rows * (self.cols + self.newline)

    def __str__(self) -> str:
        return f"{self.kind} {self.rows}x{self.cols}" + (" with newlines" if self.newline else "")


@dataclass(frozen=True)
class ImageGrid:
    """The tokens of one image or video: fillers, then its blocks one after another, then fillers.

    Attributes:
        blocks: the blocks in token order.
        leading_fillers: image tokens before the first block (a class token).
        trailing_fillers: image tokens after the last block (a single newline).

    Raises:
        LvlmAttnError: if the blocks are no tuple of `Block`, or the fillers no whole numbers from 0 on.

    Example:
        >>> ImageGrid((Block(2, 2, "base"), Block(3, 4, "tiles", newline=True))).tokens
        19
    """

    blocks: tuple[Block, ...]
    trailing_fillers: int = 0
    leading_fillers: int = 0

    def __post_init__(self) -> None:
        blocks: Any = self.blocks
        if not isinstance(blocks, tuple | list) or not all(isinstance(block, Block) for block in blocks):
            raise LvlmAttnError(
                f"ImageGrid: blocks={shown(blocks)} must be a tuple of Block, as in (Block(...),)."
            )
        object.__setattr__(self, "blocks", tuple(blocks))
        for name in ("trailing_fillers", "leading_fillers"):
            if not _is_count(getattr(self, name)):
                raise LvlmAttnError(
                    f"ImageGrid: {name}={shown(getattr(self, name))} must be a whole number from 0 on."
                )

    @property
    def is_video(self) -> bool:
        """Whether the blocks are the frames of a video."""
        return any(block.time is not None for block in self.blocks)

    @property
    def patches(self) -> int:
        """Tokens that show a place of the image."""
        return sum(block.patches for block in self.blocks)

    @property
    def tokens(self) -> int:
        """All tokens with the image token's id that the image takes."""
        return self.leading_fillers + sum(block.tokens for block in self.blocks) + self.trailing_fillers

    def __str__(self) -> str:
        parts = list(map(str, self.blocks))
        if self.is_video:
            parts = [f"{len(list(same))} x {text}" for text, same in groupby(parts)]
        if self.leading_fillers:
            parts.insert(0, f"{self.leading_fillers} leading filler")
        if self.trailing_fillers:
            parts.append(f"{self.trailing_fillers} trailing filler")
        return " + ".join(parts)


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and int(value) >= 0


def video_grid(count: int, rows: int, cols: int, *, frames: int = 1, trailing_fillers: int = 0) -> ImageGrid:
    """The grid of a video: one block for each frame, or for each group of frames that one token shows.

    Args:
        count: how many blocks.
        rows: patches from top to bottom.
        cols: patches from left to right.
        frames: how many frames one block shows.
        trailing_fillers: tokens after the last block.

    Example:
        >>> str(video_grid(8, 14, 14, trailing_fillers=1))
        '8 x frame 14x14 + 1 trailing filler'
    """
    blocks = tuple(Block(rows, cols, "frame", time=time, frames=frames) for time in range(count))
    return ImageGrid(blocks, trailing_fillers)
