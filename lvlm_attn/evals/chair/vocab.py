"""Finds COCO objects in a caption: tokens, longest match over surface forms, and CHAIR's special rules.

Three modes. ``strict`` (default) knows every singular and plural of the table and other spellings of its words.
The other two give the counts of published scripts, which differ because they bring words to the singular by
software: ``pattern`` (the original script of Rohrbach et al. 2018) never sees "bus" or "ties", ``wordnet``
(OPERA's variant, copied by most later work) never sees "men" or "vases", and takes verbs for objects ("skiing" for
skis), since it brings each word to the base form of its part of speech. What each misses and adds is kept here as
data, so no language package is needed. What remains of ``wordnet`` is its tagger: whether it calls a word a verb
depends on the sentence, so that words that are as often nouns or adjectives ("training", "bowling", "manned") are
left out, and a "seating" it calls a noun is counted. Both also inherit slips of the published synonym table, which
``strict`` does not. Scores of different modes are not comparable; results name theirs.

Known limits, in every mode: "orange" the colour counts as the fruit, "train" the verb as the vehicle, and a
negated object ("no people") as mentioned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.chair.spellings import other_spellings
from lvlm_attn.evals.chair.words import ANIMALS, WORDS, plurals
from lvlm_attn.evals.core.parsers import without_reasoning

MODES = ("strict", "pattern", "wordnet")
Phrase = tuple[str, ...]

_TOKEN = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*|[^\w\s]")

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
# Verbs whose base form is a word of the table: seated is brought to "seat", born to "bear".
_VERBS = {
    "skiing": "skis",
    "skied": "skis",
    "seated": "chair",
    "seating": "chair",
    "skateboarding": "skateboard",
    "skateboarded": "skateboard",
    "snowboarding": "snowboard",
    "snowboarded": "snowboard",
    "tied": "tie",
    "tying": "tie",
    "boating": "boat",
    "boated": "boat",
    "monitoring": "tv",
    "monitored": "tv",
    "groomed": "person",
    "grooming": "person",
    "born": "bear",
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
    if mode == "strict":
        for spelling, node in other_spellings():
            table.setdefault(tuple(spelling.split()), node)
    else:
        for word in _NEVER_IN_PUBLISHED:
            for form in (word, *plurals(word)):
                del table[tuple(form.split())]
        add("motor bike", None)
        table.update({(word,): node for word, node in _ONLY_IN_PUBLISHED.items()})
        for form in _MISSED[mode]:
            del table[tuple(form.split())]
    if mode == "wordnet":
        table.update({(word,): node for word, node in _VERBS.items()})
    return table


@cache
def _longest_from(mode: str) -> Mapping[str, int]:
    """The length of the longest phrase that begins with a word; most words begin none."""
    longest: dict[str, int] = {}
    for phrase in surface_table(mode):
        longest[phrase[0]] = max(len(phrase), longest.get(phrase[0], 0))
    return longest


def tokenise(caption: str) -> list[str]:
    """Splits into lower-case words and punctuation; ``'s`` stands alone, hyphens stay inside words."""
    tokens: list[str] = []
    for token in _TOKEN.findall(caption.lower()):
        if token.endswith(("'s", "’s")):
            tokens += [token[:-2], "'s"]
        else:
            tokens.append(token)
    return tokens


def read_caption(caption: str, mode: str = "strict") -> Reading:
    """Finds the objects a caption mentions, repeated mentions included; ``strict`` skips reasoning blocks.

    Args:
        caption: the text.
        mode: ``strict``, ``pattern`` or ``wordnet``.

    Example:
        >>> [m.node for m in read_caption("Two men wait for the bus near a hot dog stand.").mentions]
        ['person', 'bus', 'hot dog']
    """
    table, longest = surface_table(mode), _longest_from(mode)
    if mode == "strict":
        caption = without_reasoning(caption)[0]
    words = tokenise(caption)
    found: list[Mention] = []
    at = token = sentence = 0
    toilet = False
    while at < len(words):
        word, length, node = words[at], 1, None
        if word in longest:
            length, node = _longest_match(table, words, at, longest[word])
        elif "-" in word and mode == "strict":
            node = _hyphenated(table, word)
        if node is not None:
            surface = " ".join(words[at : at + length])
            toilet |= surface in ("toilet", "toilets", "toilet seat", "toilet seats")
            found.append(Mention(node, surface, token, sentence))
        elif word in (".", "!", "?") and words[at + 1 : at + 2] not in (["."], ["!"], ["?"]):
            sentence += 1
        at += length
        token += 1
    if toilet:
        found = [mention for mention in found if mention.surface not in ("seat", "seats")]
    return Reading(tuple(found), token)


def _longest_match(
    table: Mapping[Phrase, str | None], words: list[str], at: int, longest: int
) -> tuple[int, str | None]:
    for length in range(min(longest, len(words) - at), 0, -1):
        phrase = tuple(words[at : at + length])
        if phrase in table:
            return length, table[phrase]
    return 1, None


def _hyphenated(table: Mapping[Phrase, str | None], word: str) -> str | None:
    """A compound with hyphens, written apart or together."""
    return table.get(tuple(word.split("-"))) or table.get((word.replace("-", ""),))


def nodes_of(names: Iterable[str], mode: str = "strict") -> tuple[set[str], list[str]]:
    """Maps object names of a ground truth to categories.

    Returns:
        The categories, and the names that no category covers.
    """
    table = surface_table(mode)
    nodes: set[str] = set()
    unknown: list[str] = []
    for name in names:
        plain = name.lower().replace("_", " ").strip()
        node = plain if plain in WORDS else table.get(tuple(plain.split()))
        if node is None and mode == "strict":
            node = _hyphenated(table, plain)
        if node is None:
            unknown.append(name)
        else:
            nodes.add(node)
    return nodes, unknown
