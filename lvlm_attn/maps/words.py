"""Tokens as pieces of text, and which tokens a word is made of."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

_BREAK = "\n\0\n"
"""Stands between tokens that do not follow one another; no word holds it."""

_SPECIAL = re.compile(r"</?[\w|]+>")


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text that every token adds to what stands before it; joined, they are the decoded text.

    A character of several tokens belongs to the last of them, and the others are empty.

    Args:
        ids: the token ids of one stretch of text.
        tokenizer: has `decode`.

    Example:
        >>> class Letters:
        ...     def decode(self, ids, **options):
        ...         return "".join(chr(i) for i in ids)
        >>> token_texts([72, 105], Letters())
        ['H', 'i']
    """
    texts: list[str] = []
    start, read = 0, 0  # decoded together, so that a token is seen after the ones that shape its beginning
    for place in range(len(ids)):
        before = _decode(tokenizer, ids[start:read])
        after = _decode(tokenizer, ids[start : place + 1])
        if after.endswith("�") and place + 1 < len(ids):
            texts.append("")
            continue
        texts.append(after[len(before) :] if after.startswith(before) else after)
        start, read = read, place + 1
    return texts


def find_word(pieces: Sequence[str], word: str, mention: int = 1) -> list[int]:
    """Which pieces a mention of a word lies in, whatever its case.

    Args:
        pieces: text of the tokens, as `token_texts` gives it.
        word: a word, or several with blanks between them.
        mention: 1 for the first time it occurs.

    Returns:
        Indices of the pieces; none if the word does not occur that often.

    Example:
        >>> find_word([" A", " hot", "dog", ".", " A", " dog", "."], "dog")
        [5]
        >>> find_word([" A", " hot", "dog", "."], "hotdog")
        [1, 2]
    """
    found = list(_pattern(word).finditer("".join(pieces)))
    if not word.strip() or not 1 <= mention <= len(found):
        return []
    first, last = found[mention - 1].span()
    chosen, end = [], 0
    for index, piece in enumerate(pieces):
        start, end = end, end + len(piece)
        if start < last and end > first:
            chosen.append(index)
    while chosen and chosen[0] > 0 and pieces[chosen[0] - 1] == "":
        chosen.insert(0, chosen[0] - 1)  # the first bytes of the word's first character
    return chosen


def count_word(pieces: Sequence[str], word: str) -> int:
    """How often a word occurs."""
    return len(_pattern(word).findall("".join(pieces))) if word.strip() else 0


def words_in(pieces: Sequence[str]) -> list[str]:
    """The distinct words of a text, in the order in which they first occur.

    Example:
        >>> words_in([" A", " dog", " and", " a", " cat", "."])
        ['A', 'dog', 'and', 'cat']
    """
    seen: dict[str, str] = {}
    text = _SPECIAL.sub(" ", "".join(pieces))  # special tokens are no words
    for word in re.findall(r"\w+(?:['’-]\w+)*", text):
        seen.setdefault(word.casefold(), word)
    return list(seen.values())


def recorded_text(pieces: Sequence[str], limit: int = 200) -> str:
    """What pieces say, on one line, in quotes, cut off where it is long; gaps between them are three dots.

    Example:
        >>> recorded_text([" A", " traffic", " light", ".", " </s>"])
        '“A traffic light.”'
    """
    text = _SPECIAL.sub(" ", "".join(pieces).replace(_BREAK, " ... "))
    text = " ".join(text.split())
    if not text:
        return "nothing at all"
    return f"“{text}”" if len(text) <= limit else f"“{text[: limit - 3]}...”"


def joined_pieces(pieces: Sequence[str], positions: Sequence[int]) -> list[str]:
    """Pieces of tokens at given positions, each with a break before it where its neighbour is missing."""
    result = []
    for index, (piece, position) in enumerate(zip(pieces, positions)):
        follows = index == 0 or position == positions[index - 1] + 1
        result.append(piece if follows else _BREAK + piece)
    return result


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _pattern(word: str) -> re.Pattern[str]:
    """Finds a word between word boundaries; scripts that put no blanks between words have none."""
    text = r"\s+".join(re.escape(part) for part in word.split())
    first, last = word.strip()[:1], word.strip()[-1:]
    before = r"(?<!\w)" if _needs_boundary(first) else ""
    after = r"(?!\w)" if _needs_boundary(last) else ""
    return re.compile(f"{before}{text}{after}", re.IGNORECASE)


def _needs_boundary(letter: str) -> bool:
    return bool(letter) and (letter.isalnum() or letter == "_") and unicodedata.category(letter) != "Lo"
