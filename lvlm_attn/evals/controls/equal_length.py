"""Captions of two runs cut to equal length: a caption that says less also errs less."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_attn.evals.core.tally import Line

Lines = Sequence[Line]


def cut_to_equal_length(first: Lines, second: Lines) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Cuts the two captions of every picture to as many words as the shorter one has.

    Args:
        first: the lines of one run.
        second: those of the other; lines that only one of them has are left out.

    Example:
        >>> cut_to_equal_length([{"sample_id": "1", "raw_text": "A dog on a bed."}],
        ...                     [{"sample_id": "1", "raw_text": "A dog."}])[0]
        [{'sample_id': '1', 'raw_text': 'A dog'}]
    """
    others: Mapping[str, Line] = {str(line["sample_id"]): line for line in second}
    cut: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for line in first:
        other = others.get(str(line["sample_id"]))
        if other is None:
            continue
        texts = [str(item.get("raw_text") or "") for item in (line, other)]
        length = min(len(words(text)) for text in texts)
        for kept, item, text in zip(cut, (line, other), texts, strict=True):
            kept.append({**item, "raw_text": first_words(text, length)})
    return cut


def words(text: str) -> list[str]:
    """Words without what stands between them."""
    return _WORD.findall(text)


def first_words(text: str, count: int) -> str:
    """The beginning of a text, up to the end of its word number `count`."""
    end = 0
    for place, found in enumerate(_WORD.finditer(text)):
        if place == count:
            break
        end = found.end()
    return text[:end]


_WORD = re.compile(r"\w+(?:['’-]\w+)*")
