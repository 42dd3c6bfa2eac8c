"""From a word or a number to rows of recorded attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lvlm_attn.errors import LvlmAttnError, closest, count_of
from lvlm_attn.maps.words import count_word, find_word, joined_pieces, recorded_text, words_in

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


def rows_of(maps: AttentionMaps, key: int | slice | str | tuple[str, int]) -> list[int]:
    """The numbers of the rows that `maps[key]` means.

    Raises:
        LvlmAttnError: if there are none.
    """
    count = len(maps)
    if isinstance(key, slice):
        return list(range(count))[key]
    if isinstance(key, int):
        if not -count <= key < count:
            raise LvlmAttnError(f"There is no row {key}; these maps hold {count}, numbered from 0.")
        return [key % count]
    if isinstance(key, str):
        return _word(maps, key, 1)
    if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and isinstance(key[1], int):
        return _word(maps, *key)
    raise LvlmAttnError(
        f"maps[{key!r}] is no choice of tokens; give a word, ('word', 2) for its second mention, a row or a slice."
    )


def words(maps: AttentionMaps) -> list[str]:
    """The distinct words that have rows, of a single sample."""
    return words_in(_pieces(maps)[0])


def _pieces(maps: AttentionMaps) -> tuple[list[str], list[int]]:
    """Text and row number of every token with a row, in the order of the sequence, each token once."""
    maps._lone("A word")
    if maps.pieces is None:
        raise LvlmAttnError(
            "Words are not known without a tokenizer; wrap the model with processor=processor."
        )
    row_at: dict[int, int] = {}
    for row, position in enumerate(maps.targets[0].tolist()):
        if position >= 0:
            row_at.setdefault(position, row)
    positions = sorted(row_at)
    texts = [maps.pieces[0][position] for position in positions]
    return joined_pieces(texts, positions), [row_at[position] for position in positions]


def _word(maps: AttentionMaps, word: str, mention: int) -> list[int]:
    pieces, rows = _pieces(maps)
    found = find_word(pieces, word, mention)
    if found:
        return [rows[index] for index in found]
    count = count_word(pieces, word)
    if count:
        raise LvlmAttnError(
            f"{word!r} is mentioned {count_of(count, 'time')}, so there is no mention {mention}; count from 1."
        )
    hint = closest(word, words_in(pieces), least=0.7)
    raise LvlmAttnError(
        f"No recorded token holds the word {word!r}.{hint} The tokens with rows say: {recorded_text(pieces)}."
    )
