"""Finds COCO objects in a caption: tokens, longest match over surface forms, and CHAIR's special rules.

Three modes. ``strict`` (default) knows every singular and plural of the table. The other two give the counts
of published scripts, which differ because they bring words to the singular by software: ``pattern`` (the
original script of Rohrbach et al. 2018) never sees "bus" or "ties", ``wordnet`` (OPERA's variant, copied by
most later work) never sees "men" or "vases". What each misses is kept here as data, so no language package is
needed. Both also inherit slips of the published synonym table, which ``strict`` mends. Scores of different
modes are not comparable; results name theirs.

Known limits, in every mode: "orange" the colour counts as the fruit, "train" the verb as the vehicle, and a
negated object ("no people") as mentioned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.chair.words import ANIMALS, WORDS, plurals

MODES = ("strict", "pattern", "wordnet")
Phrase = tuple[str, ...]

_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")
_LONGEST = 3

# Keys of the published table that can never match: blanks before the word, a capital letter, three words.
_NEVER_IN_PUBLISHED = ("motor bike", "cheesecake", "iphone", "hair dryer", "stove top oven", "dining table")
# Misspellings in the published table and odd plurals that the software still brings to a known singular.
_ONLY_IN_PUBLISHED = {
    "televison": "tv",
    "solider": "person",
    "knive": "knife",
    "knifes": "knife",
    "phon": "cell phone",
    "peoples": "person",
    "mouses": "mouse",
    "oxes": "cow",
    "calfs": "cow",
    "sheeps": "sheep",
    "aircrafts": "airplane",
}
_MISSED: dict[str, tuple[str, ...]] = {
    "strict": (),
    "pattern": (
        "airbus",
        "bus",
        "busses",
        "canoes",
        "collies",
        "doggies",
        "magpies",
        "minibus",
        "minibusses",
        "thieves",
        "ties",
        "bow ties",
        "tennis racket",
        "tennis rackets",
        "sports ball",
        "sports balls",
    ),
    "wordnet": (
        "bikers",
        "bluejays",
        "brindles",
        "buffaloes",
        "coworkers",
        "firetrucks",
        "flamingoes",
        "hairdryers",
        "lenovos",
        "longboards",
        "macbooks",
        "men",
        "minibusses",
        "netbooks",
        "paddleboats",
        "pitbulls",
        "pocketknives",
        "riverboats",
        "sailboards",
        "shortboards",
        "skimboards",
        "smartphones",
        "sports ball",
        "sports balls",
        "stovetops",
        "teddybears",
        "vases",
    ),
}


@dataclass(frozen=True)
class Mention:
    """One object word in a caption.

    Attributes:
        node: the COCO category.
        surface: the words as written, lower-case.
        token: index of the token, words of one phrase counted as one, punctuation counted.
        sentence: index of the sentence, from 0.
    """

    node: str
    surface: str
    token: int
    sentence: int


@dataclass(frozen=True)
class Reading:
    """A caption as CHAIR sees it: its mentions and its number of tokens after joining phrases."""

    mentions: tuple[Mention, ...]
    tokens: int


@cache
def surface_table(mode: str = "strict") -> Mapping[Phrase, str | None]:
    """Returns the table from phrase (lower-case words) to category.

    A phrase mapped to None is consumed without counting: in "home plate" there is no plate of food, in "train
    tracks" no train.

    Args:
        mode: ``strict``, ``pattern`` or ``wordnet``.

    Raises:
        LvlmAttnError: no such mode.
    """
    if mode not in MODES:
        raise LvlmAttnError(f"no CHAIR mode {mode!r}.{closest(mode, MODES)} Known modes: {', '.join(MODES)}.")
    table: dict[Phrase, str | None] = {}

    def add(word: str, node: str | None) -> None:
        for form in (word, *plurals(word)):
            table[tuple(form.split())] = node

    for node, synonyms in WORDS.items():
        for word in (node, *filter(None, synonyms.split(", "))):
            add(word, node)
    for animal in (*ANIMALS, "animal", "cub"):
        node_of_animal = animal if animal in ANIMALS else None
        add(f"baby {animal}", node_of_animal)
        add(f"adult {animal}", node_of_animal)
    add("passenger jet", "airplane")
    add("passenger train", "train")
    add("toilet seat", "toilet")
    add("home plate", None)
    add("train track", None)
    if mode != "strict":
        for word in _NEVER_IN_PUBLISHED:
            for form in (word, *plurals(word)):
                del table[tuple(form.split())]
        add("motor bike", None)
        table.update({(word,): node for word, node in _ONLY_IN_PUBLISHED.items()})
        for form in _MISSED[mode]:
            del table[tuple(form.split())]
    return table


def tokenise(caption: str) -> list[str]:
    """Splits into lower-case words and punctuation; ``'s`` stands alone, hyphens stay inside words."""
    tokens: list[str] = []
    for token in _TOKEN.findall(caption.lower()):
        if token.endswith(("'s", "’s")) and len(token) > 2:
            tokens += [token[:-2], "'s"]
        else:
            tokens.append(token)
    return tokens


def read_caption(caption: str, mode: str = "strict") -> Reading:
    """Finds the objects a caption mentions, repeated mentions included.

    Args:
        caption: the text.
        mode: ``strict``, ``pattern`` or ``wordnet``.

    Example:
        >>> [m.node for m in read_caption("Two men wait for the bus near a hot dog stand.").mentions]
        ['person', 'bus', 'hot dog']
    """
    table = surface_table(mode)
    words = tokenise(caption)
    found: list[Mention] = []
    at = token = sentence = 0
    toilet = False
    while at < len(words):
        length, node = _longest_match(table, words, at, hyphens=mode == "strict")
        if node is not None:
            surface = " ".join(words[at : at + length])
            toilet |= surface in ("toilet", "toilets", "toilet seat", "toilet seats")
            found.append(Mention(node, surface, token, sentence))
        following = words[at + 1] if at + 1 < len(words) else ""
        if words[at] in ".!?" and following not in (".", "!", "?"):
            sentence += 1
        at += length
        token += 1
    if toilet:
        found = [mention for mention in found if mention.surface not in ("seat", "seats")]
    return Reading(tuple(found), token)


def _longest_match(
    table: Mapping[Phrase, str | None], words: list[str], at: int, hyphens: bool
) -> tuple[int, str | None]:
    for length in range(min(_LONGEST, len(words) - at), 0, -1):
        phrase = tuple(words[at : at + length])
        if phrase in table:
            return length, table[phrase]
    if hyphens and "-" in words[at]:
        return 1, table.get(tuple(words[at].split("-")))
    return 1, None


def nodes_of(names: Iterable[str], mode: str = "strict") -> tuple[set[str], list[str]]:
    """Maps object names of a ground truth to categories.

    Returns:
        The categories, and the names that no category covers.
    """
    table = surface_table(mode)
    nodes: set[str] = set()
    unknown: list[str] = []
    for name in names:
        node = name if name in WORDS else table.get(tuple(name.lower().replace("_", " ").split()))
        if node is None:
            unknown.append(name)
        else:
            nodes.add(node)
    return nodes, unknown
