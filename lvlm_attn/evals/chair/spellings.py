"""Other spellings of CHAIR's words, for the mode ``strict``: British ones, and compounds apart, together or hyphenated.

The published table knows "hot dog" and "skateboard" but neither "hotdog" nor "skate board", so that a caption is
judged by its spelling. Here every compound is read in all three ways. Words written apart are listed where their
parts alone would be missed or misread ("love seat" is no seat, "pit bull" no cow); those whose last word means the
same are found by it ("sail boat"). Written by hand from the words of :data:`lvlm_attn.evals.chair.words.WORDS`.
"""

from __future__ import annotations

from collections.abc import Iterator

from lvlm_attn.evals.chair.words import WORDS, plurals

APART: dict[str, str] = {
    "person": "skate boarder, snow boarder, cow boy",
    "car": "hatch back",
    "airplane": "air craft, air bus, jet liner",
    "boat": "water craft, sail board",
    "bird": "wood pecker, king fisher",
    "dog": "bull dog, sheep dog, pit bull",
    "backpack": "back pack, knap sack",
    "handbag": "hand bag, brief case",
    "snowboard": "snow board",
    "sports ball": "sport ball",
    "skateboard": "skate board",
    "baseball bat": "base ball bat",
    "baseball glove": "base ball glove",
    "surfboard": "surf board, long board, skim board, short board, wake board",
    "donut": "dough nut",
    "sandwich": "ham burger",
    "couch": "love seat",
    "potted plant": "house plant",
    "tv": "tele vision, t . v, tv monitor",
    "laptop": "lap top, net book, mac book",
    "keyboard": "key board",
    "microwave": "micro wave",
    "toothbrush": "tooth brush",
}

OTHERWISE: dict[str, str] = {
    "person": "traveller",
    "airplane": "aeroplane",
    "tennis racket": "tennis racquet, tennis raquet, racquet, raquet",
    "hair drier": "hairdrier",
    "frisbee": "frisbie",
}


def other_spellings() -> Iterator[tuple[str, str]]:
    """Yields ``(words, category)`` for every spelling, singular and plural, those of the table among them.

    Example:
        >>> dict(other_spellings())["hotdogs"], dict(other_spellings())["surf boards"]
        ('hot dog', 'surfboard')
    """
    for table in (APART, OTHERWISE, WORDS):
        for node, listed in table.items():
            for word in filter(None, (node, *listed.split(", ")) if table is WORDS else listed.split(", ")):
                for form in (word, *plurals(word)):
                    yield form, node
                    if " " in form and "." not in form:
                        yield form.replace(" ", ""), node
