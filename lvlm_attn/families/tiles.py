"""Images cut into tiles with markers between them: which runs of image tokens belong to one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import ImageInputs, image_features, image_runs, image_token_id, side
from lvlm_attn.layout.grids import Block, ImageGrid


class Run(NamedTuple):
    """Neighbouring image tokens: positions `start` to `stop` of a row, and the ids since the run before."""

    row: int
    start: int
    stop: int
    before: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """How many there are."""
        return self.stop - self.start


def runs_of(image_inputs: ImageInputs, token: int | None = None) -> list[Run]:
    """All runs of image tokens, or of `token`, in flat order; `before` of the first in a row begins with the row."""
    token = image_token_id(image_inputs.config) if token is None else token
    found: list[Run] = []
    ids = image_inputs.input_ids.tolist()
    for row, start, stop in image_runs(image_inputs.input_ids, token):
        last = found[-1].stop if found and found[-1].row == row else 0
        found.append(Run(row, start, stop, tuple(ids[row][last:start])))
    return found


def grouped(runs: Sequence[Run], begins_image: Callable[[Run], bool]) -> list[list[Run]]:
    """Runs by image: a run begins one if it is the first of its row, or if `begins_image` says so."""
    groups: list[list[Run]] = []
    for run in runs:
        if groups and groups[-1][-1].row == run.row and not begins_image(run):
            groups[-1].append(run)
        else:
            groups.append([run])
    return groups


def check_tiles(image_inputs: ImageInputs, runs: Sequence[Run], tokens: int) -> None:
    """Checks that every run is one tile, and that as many tiles are encoded.

    Raises:
        UnsupportedError: if a run has another length, as when a chunked prefill cuts it.
        LvlmAttnError: if the tiles are not as many as the encoded ones.
    """
    for run in runs:
        if run.tokens != tokens:
            raise UnsupportedError(
                f"Row {run.row} of the prompt has {run.tokens} image tokens in a run, where a tile takes {tokens}; "
                f"pass the processor's ids unchanged, and prefill_chunk_size=None if the prefill is chunked."
            )
    given, needed = encoded_tokens(image_inputs, tokens), sum(run.tokens for run in runs)
    if given is not None and given != needed:
        raise LvlmAttnError(
            f"The prompt has image tokens for {needed // tokens} tiles, but {given // tokens} tiles are given; build "
            f"the ids and the images with the same processor call."
        )


def encoded_tokens(image_inputs: ImageInputs, tokens: int) -> int | None:
    """How many tokens the images give: features of them, or tiles `(tiles, channels, height, width)` of `tokens` each.

    None where neither is at hand.
    """
    features, pixels = image_features(image_inputs), image_inputs.call.get("pixel_values")
    if features is not None:
        return sum(len(feature) for feature in features)
    return len(pixels) * tokens if isinstance(pixels, Tensor) and pixels.dim() == 4 else None


def shuffled_side(config: Any, factor: float) -> tuple[int, int]:
    """Rows and columns of a tile after `factor x factor` patches are put together into one token."""
    (height, width), (tall, wide) = (
        side(config.vision_config.image_size),
        side(config.vision_config.patch_size),
    )
    return int(height // tall / factor), int(width // wide / factor)


def tiles_then_whole(count: int, rows: int, cols: int, across: int | None = None) -> ImageGrid:
    """An image of `count` tiles, of which the last shows all of it; `across` is the number of tiles in a row.

    Example:
        >>> [str(block) for block in tiles_then_whole(3, 4, 4).blocks]
        ['tile 4x4', 'tile 4x4', 'thumbnail 4x4']
    """
    if count == 1:
        return ImageGrid((Block(rows, cols, "base"),))
    return ImageGrid((*_tiles(count - 1, rows, cols, across), Block(rows, cols, "thumbnail")))


def whole_then_tiles(count: int, rows: int, cols: int, across: int | None = None) -> ImageGrid:
    """An image of `count` tiles, of which the first shows all of it; `across` is the number of tiles in a row.

    Example:
        >>> whole_then_tiles(3, 4, 4, across=2).blocks[2].tile_col
        1
    """
    if count == 1:
        return ImageGrid((Block(rows, cols, "base"),))
    return ImageGrid((Block(rows, cols, "base"), *_tiles(count - 1, rows, cols, across)))


def unplaced(lengths: Sequence[int]) -> ImageGrid:
    """An image of blocks of so many tokens, whose rows and columns are not known.

    Example:
        >>> str(unplaced([4, 6]))
        'unplaced 1x4 + unplaced 1x6'
    """
    return ImageGrid(tuple(Block(1, length, "unplaced") for length in lengths))


def _tiles(count: int, rows: int, cols: int, across: int | None) -> list[Block]:
    if across is None:
        return [Block(rows, cols, "tile")] * count
    return [
        Block(rows, cols, "tile", tile_row=place // across, tile_col=place % across) for place in range(count)
    ]
