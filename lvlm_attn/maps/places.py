"""Places of a sequence: a patch, a word, or a position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.words import find_word, joined_pieces

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

Place = int | str | tuple[int, int] | tuple[int, int, int, int]
"""A position; a word; a patch `(row, col)` of the only image's first block; or `(image, block, row, col)`."""


def positions_of(maps: AttentionMaps, place: Place) -> list[int]:
    """The key positions of a place in a single sample.

    Raises:
        LvlmAttnError: if there is no such place among the keys.
    """
    layout = maps.layout
    if isinstance(place, str):
        text = layout.is_text[0].nonzero().flatten().tolist()
        if maps.pieces is None:
            raise LvlmAttnError(
                "Words are not known without a tokenizer; wrap the model with processor=processor."
            )
        pieces = joined_pieces([maps.pieces[0][position] for position in text], text)
        found = [text[index] for index in find_word(pieces, place)]
        if not found:
            raise LvlmAttnError(f"No word {place!r} stands in the prompt or the answer.")
        return found
    if isinstance(place, int):
        if not 0 <= place < layout.length or not bool(layout.is_valid[0, place]):
            raise LvlmAttnError(
                f"Position {place} is padding or outside the sequence, whose keys are 0 to {layout.length - 1}."
            )
        return [place]
    image, block, row, col = place if len(place) == 4 else (0, 0, *place)
    is_here = (layout.image[0] == image) & (layout.block[0] == block)
    is_here &= (layout.row[0] == row) & (layout.col[0] == col)
    found = is_here.nonzero().flatten().tolist()
    if not found:
        grids = layout.grids[0]
        sizes = (
            "; ".join(f"image {number}: {grid}" for number, grid in enumerate(grids)) or "there is no image"
        )
        raise LvlmAttnError(
            f"There is no patch in row {row} and column {col} of block {block} of image {image} ({sizes})."
        )
    return [int(position) for position in found]
