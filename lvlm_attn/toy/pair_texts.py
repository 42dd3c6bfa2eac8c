"""Training conversations about two pictures in one prompt, in words that the tokenizer has."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_attn.toy.captions import draw_caption
from lvlm_attn.toy.data import (
    ORDINALS,
    Batch,
    TextConfig,
    Turn,
    caption_turns,
    draw_kind,
    encode,
    place_turns,
    yes_no_suffix,
    yes_no_turns,
)
from lvlm_attn.toy.pool import SceneFacts
from lvlm_attn.toy.prompts import SUFFIXES, draw_question, plural, with_article
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.world import Rng

_NOUNS = ("image", "image", "picture", "photo")
_BOTH = (
    "In both {nouns}, is there {thing}?",
    "In both {nouns}, can you see {thing}?",
    "Do both {nouns} show {thing}?",
    "In both {nouns}, are there {things}?",
)
_ANY = (
    "In any of the {nouns}, is there {thing}?",
    "Is there {thing} in any of the {nouns}?",
    "Can you see {thing} in any of the {nouns}?",
    "Does any of the {nouns} show {thing}?",
)
_WHICH = (
    "Which {noun} shows {thing}, the first or the second?",
    "Which of the {nouns} shows {thing}, the first or the second?",
    "Is the {name} in the first or the second {noun}?",
)
_DESCRIBE_BOTH = (
    "Describe both {nouns}.",
    "Please describe both {nouns}.",
    "Describe the two {nouns}.",
    "What is shown in both {nouns}?",
)
_NOUN = r"(?:the|this) (image|picture|photo|scene|photograph)\b"
_PICTURE = re.compile(rf"\b{_NOUN}")
_INSIDE = re.compile(rf" (?:in|of) {_NOUN}")
_OF_OBJECTS = ("Is", "Are", "Can", "Do", "Does", "How", "Where", "Which")  # captions are asked otherwise
_TOGETHER = 0.2  # share of yes/no questions that are about both pictures
_COMPARED = 0.15  # share of yes/no questions that ask which picture shows an object instead
_BOTH_CAPTIONS = 0.3  # share of captions that are of both pictures
_ALIKE = 0.5  # share of pairs that are chosen to have an object in common
_CANDIDATES = 8


def about(question: str, which: int) -> str:
    """Returns a question about "the image" as one about the first (0) or second (1) of two.

    The picture is named before the object, so that the toy knows where to look when it reads the object's name.

    Example:
        >>> about("Is there a dog in the image?", 1)
        'In the second image, is there a dog?'
        >>> about("Does this photo show a dog?", 1)
        'Does the second photo show a dog?'
        >>> about("Where is the dog?", 0)
        'In the first image, where is the dog?'
    """
    named = f"the {ORDINALS[which]}"
    inside = _INSIDE.search(question)
    if question.split()[0] in _OF_OBJECTS and (inside or not _PICTURE.search(question)):
        noun = inside[1] if inside else "image"
        left = _INSIDE.sub("", question, count=1)
        return f"In {named} {noun}, {left[0].lower()}{left[1:]}"
    return _PICTURE.sub(rf"{named} \1", question, count=1)


def pick_pairs(rng: Rng, facts: Sequence[SceneFacts], pairs: int) -> NDArray[Any]:
    """Draws which scenes of a pool stand together: some at random, some with an object in common if any has one.

    Args:
        rng: Source of randomness.
        facts: The pool's scenes.
        pairs: How many pairs.

    Returns:
        (2 * pairs,) indices, the two of a pair one after the other.
    """
    rows: list[int] = []
    for first, *others in rng.integers(0, len(facts), (pairs, 1 + _CANDIDATES)).tolist():
        second = others[0]
        if rng.random() < _ALIKE:
            names = _names(facts[first])
            second = max(others, key=lambda row: len(names & _names(facts[row])))
        rows += [first, second] if rng.random() < 0.5 else [second, first]
    return np.array(rows)


def pair_yes_no_turns(rng: Rng, pair: Sequence[SceneFacts], config: TextConfig) -> list[Turn]:
    """Draws yes/no questions about one of two pictures or about both, and which of them shows an object.

    Args:
        rng: Source of randomness.
        pair: The two scenes.
        config: How many questions, and how hard the negatives are.
    """
    single = dataclasses.replace(config, turns=1)
    turns: list[Turn] = []
    while len(turns) < config.turns:
        value, which = rng.random(), int(rng.integers(2))
        only_here = sorted(_names(pair[which]) - _names(pair[1 - which]) - set(pair[1 - which].unsure))
        if value < _COMPARED and only_here:
            turns.append(_compared(rng, _one_of(rng, only_here), which, config))
        elif value < _COMPARED + _TOGETHER:
            turns.append(_together(rng, pair, config))
        else:
            (turn,) = yes_no_turns(rng, pair[which], single)
            if turn.answer == "No":
                only_there = sorted(_names(pair[1 - which]) - _names(pair[which]) - set(pair[which].unsure))
                if only_there and rng.random() < config.cross_share:
                    name = _one_of(rng, only_there)
                    asked = draw_question(rng, "exists", name, config.pope_share)
                    turn = Turn(asked + yes_no_suffix(rng, config), "No", is_there=False)
            turns.append(_asked_about(turn, which))
    return turns


def pair_turns(rng: Rng, pair: Sequence[SceneFacts], config: TextConfig, kind: str) -> list[Turn]:
    """Draws one conversation about two pictures.

    Args:
        rng: Source of randomness.
        pair: The two scenes.
        config: What conversations are made of.
        kind: "yes_no", "places" or "caption".
    """
    if kind == "yes_no":
        return pair_yes_no_turns(rng, pair, config)
    if kind == "caption" and rng.random() < _BOTH_CAPTIONS:
        asked = _one_of(rng, _DESCRIBE_BOTH).format(nouns=f"{_one_of(rng, _NOUNS)}s")
        told = [
            re.sub(
                r"^(?:The|This) \w+", f"The {ordinal} image", draw_caption(rng, scene, config.caption, True)
            )
            for ordinal, scene in zip(ORDINALS, pair)
        ]
        return [Turn(asked, " ".join(told))]
    if kind == "caption":
        which = int(rng.integers(2))
        turns = caption_turns(rng, pair[which], config)
        return [_asked_about(turn, which) for turn in turns]
    turns = []
    for which in rng.integers(0, 2, max(1, config.turns * 2 // 3)).tolist():
        (turn,) = place_turns(rng, pair[which], dataclasses.replace(config, turns=1))
        turns.append(_asked_about(turn, which))
    return turns


def draw_pair_batch(
    rng: Rng, tokenizer: Any, facts: Sequence[SceneFacts], config: TextConfig, patches: int, shares: int = 1
) -> tuple[str, Batch]:
    """Draws conversations about pairs of scenes, all of one kind.

    Args:
        rng: Source of randomness.
        tokenizer: The toy's tokenizer.
        facts: The scenes, the two of a pair one after the other.
        config: What conversations are made of.
        patches: Image tokens of a picture.
        shares: Conversations per pair.

    Returns:
        The kind and the batch.
    """
    kind = draw_kind(rng, config)
    pairs = [facts[at : at + 2] for at in range(0, len(facts), 2) for _ in range(shares)]
    rows = [pair_turns(rng, pair, config, kind) for pair in pairs]
    return kind, encode(tokenizer, rows, patches, pictures=2, shares=shares)


def _asked_about(turn: Turn, which: int) -> Turn:
    return dataclasses.replace(turn, question=about(turn.question, which), which=which)


def _names(facts: SceneFacts) -> set[str]:
    return {fact.name for fact in facts.objects}


def _one_of(rng: Rng, items: Sequence[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _compared(rng: Rng, name: str, which: int, config: TextConfig) -> Turn:
    """A question which picture shows what only one of them does."""
    suffix = f" {SUFFIXES[int(rng.integers(2))]}" if rng.random() < config.suffix_share else ""
    return Turn(_fill(rng, _WHICH, name) + suffix, ORDINALS[which].capitalize())


def _together(rng: Rng, pair: Sequence[SceneFacts], config: TextConfig) -> Turn:
    """A question about both pictures at once: whether both, or any of them, show an object."""
    shown = [_names(scene) for scene in pair]
    unsure = {name for scene in pair for name in scene.unsure}
    shared, single = sorted(shown[0] & shown[1]), sorted((shown[0] ^ shown[1]) - unsure)
    if rng.random() < 0.5 and (shared or single):
        is_both = bool(shared) and rng.random() < 0.8
        asked = _fill(rng, _BOTH if is_both else _ANY, _one_of(rng, shared if is_both else single or shared))
        return Turn(asked + yes_no_suffix(rng, config), "Yes")
    if single and rng.random() < 0.6:
        return Turn(_fill(rng, _BOTH, _one_of(rng, single)) + yes_no_suffix(rng, config), "No")
    absent = [name for name in vocabulary() if name not in shown[0] | shown[1] | unsure]
    forms = _BOTH if rng.random() < 0.3 else _ANY
    return Turn(_fill(rng, forms, _one_of(rng, absent)) + yes_no_suffix(rng, config), "No")


def _fill(rng: Rng, forms: Sequence[str], name: str) -> str:
    noun = _one_of(rng, _NOUNS)
    return _one_of(rng, forms).format(
        name=name, thing=with_article(name), things=plural(name), noun=noun, nouns=f"{noun}s"
    )
