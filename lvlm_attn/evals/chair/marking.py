"""Where in a caption the objects are named, for reports that show it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from lvlm_attn.evals.chair.vocab import read_caption

Kind = Literal["text", "there", "hallucinated"]


def marked(text: str, objects: Iterable[str], mode: str = "strict") -> list[tuple[str, Kind]]:
    """Parts a caption into plain text, objects that are in the picture, and hallucinated ones.

    Args:
        text: the caption.
        objects: the categories in the picture.
        mode: how words become categories.

    Returns:
        Pieces in order, which together are the caption.

    Example:
        >>> marked("A dog on a bench.", ["dog"])
        [('A ', 'text'), ('dog', 'there'), (' on a ', 'text'), ('bench', 'hallucinated'), ('.', 'text')]
    """
    present = set(objects)
    pieces: list[tuple[str, Kind]] = []
    at = 0
    for mention in read_caption(text, mode).mentions:
        words = r"\W+".join(re.findall(r"\w+", mention.surface))
        found = re.compile(rf"(?<![^\W_]){words}(?![^\W_])", re.IGNORECASE).search(text, at)
        if found is None:
            continue
        if found.start() > at:
            pieces.append((text[at : found.start()], "text"))
        pieces.append((found.group(), "there" if mention.node in present else "hallucinated"))
        at = found.end()
    if at < len(text):
        pieces.append((text[at:], "text"))
    return pieces
