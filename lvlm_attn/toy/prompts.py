"""The wordings of the toy's questions: POPE's and CHAIR's own, and a few hundred paraphrases of them."""

from __future__ import annotations

import itertools
from types import MappingProxyType

from lvlm_attn.toy.world import Rng

_NOUNS = ("image", "picture", "photo", "scene", "photograph")
_THIS = ("the", "this")

#: POPE's wording; the paraphrases below share the other half of the training questions.
POPE_QUESTION = "Is there {thing} in the image?"

_ASK_ONE = (
    "Is there {thing} in {this} {noun}?",
    "Is there {thing} visible in {this} {noun}?",
    "Can you see {thing} in {this} {noun}?",
    "Do you see {thing} in {this} {noun}?",
    "Does {this} {noun} show {thing}?",
    "Does {this} {noun} contain {thing}?",
    "Does {this} {noun} have {thing}?",
    "Is {thing} present in {this} {noun}?",
    "Is {thing} in {this} {noun}?",
    "Are there any {things} in {this} {noun}?",
    "Is there any {name} in {this} {noun}?",
)
_ASK_CAPTION = (
    "Please describe {this} {noun} in detail.",
    "Please help me describe {this} {noun} in detail.",
    "Describe {this} {noun} in detail.",
    "Describe {this} {noun}.",
    "Please describe {this} {noun}.",
    "Can you describe {this} {noun} in detail?",
    "Write a detailed description of {this} {noun}.",
    "Give a detailed description of {this} {noun}.",
    "What do you see in {this} {noun}?",
    "What is shown in {this} {noun}?",
    "What is in {this} {noun}?",
    "Tell me what you see in {this} {noun}.",
)
_ASK_SHORT = (
    "Generate a short caption of {this} {noun}.",
    "Provide a one-sentence caption for {this} {noun}.",
    "Write a short caption for {this} {noun}.",
    "Briefly describe {this} {noun}.",
    "Describe {this} {noun} in one sentence.",
    "List the objects in {this} {noun}.",
    "What objects are in {this} {noun}?",
)
_ASK_COUNT = (
    "How many {things} are in {this} {noun}?",
    "How many {things} are there in {this} {noun}?",
    "How many {things} can you see in {this} {noun}?",
    "Count the {things} in {this} {noun}.",
)
_ASK_SIDE = (
    "Is the {name} on the left or the right side of {this} {noun}?",
    "Is the {name} on the left or on the right of {this} {noun}?",
    "Which side of {this} {noun} is the {name} on, left or right?",
)
_ASK_LEVEL = (
    "Is the {name} at the top or the bottom of {this} {noun}?",
    "Is the {name} in the upper or the lower half of {this} {noun}, top or bottom?",
    "Is the {name} near the top or near the bottom of {this} {noun}?",
)
_ASK_WHERE = (
    "Where is the {name} in {this} {noun}?",
    "Where is the {name}?",
    "Where in {this} {noun} can you see the {name}?",
)


def _spread(forms: tuple[str, ...]) -> tuple[str, ...]:
    """Every form with every noun and article, leaving the object's own fields open."""
    filled = (
        form.replace("{this}", this).replace("{noun}", noun)
        for form, this, noun in itertools.product(forms, _THIS, _NOUNS)
    )
    return tuple(dict.fromkeys(filled))


#: Paraphrases of each kind of question; ``{thing}`` is "a dog", ``{things}`` "dogs", ``{name}`` "dog".
QUESTIONS = MappingProxyType(
    {
        "exists": _spread(_ASK_ONE),
        "caption": _spread(_ASK_CAPTION),
        "short": _spread(_ASK_SHORT),
        "count": _spread(_ASK_COUNT),
        "side": _spread(_ASK_SIDE),
        "level": _spread(_ASK_LEVEL),
        "where": _spread(_ASK_WHERE),
    }
)

#: What benchmarks append to a question to get one word for an answer.
SUFFIXES = (
    "Answer the question using a single word or phrase.",
    "Please answer this question with one word.",
    "Please answer yes or no.",
    "Answer with yes or no.",
    "Please just answer yes or no.",
    "Answer yes or no.",
)

_PLURALS = MappingProxyType(
    {
        "person": "people",
        "sheep": "sheep",
        "knife": "knives",
        "mouse": "mice",
        "skis": "skis",
        "scissors": "scissors",
        "bus": "buses",
        "couch": "couches",
        "sandwich": "sandwiches",
        "wine glass": "wine glasses",
        "toothbrush": "toothbrushes",
    }
)


def plural(name: str) -> str:
    """Returns the plural of a category.

    Example:
        >>> plural("dog"), plural("knife")
        ('dogs', 'knives')
    """
    return _PLURALS.get(name, f"{name}s")


def with_article(name: str) -> str:
    """Returns the category with "a" or "an".

    Example:
        >>> with_article("orange"), with_article("pair of scissors")
        ('an orange', 'a pair of scissors')
    """
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def pope_question(name: str) -> str:
    """Returns POPE's question about a category.

    Example:
        >>> pope_question("dog")
        'Is there a dog in the image?'
    """
    return POPE_QUESTION.format(thing=with_article(name))


def draw_question(rng: Rng, kind: str, name: str = "", pope_share: float = 0.5) -> str:
    """Draws a wording of a question.

    Args:
        rng: Source of randomness.
        kind: A key of ``QUESTIONS``.
        name: The category asked about, where the question has one.
        pope_share: How many existence questions are in POPE's own words.
    """
    if kind == "exists" and rng.random() < pope_share:
        form = POPE_QUESTION
    elif kind == "caption" and rng.random() < 0.4:
        form = _ASK_CAPTION[int(rng.integers(2))].format(
            this="this" if rng.random() < 0.5 else "the", noun="image"
        )
    else:
        form = QUESTIONS[kind][int(rng.integers(len(QUESTIONS[kind])))]
    thing = with_article(name) if name else ""
    if rng.random() < 0.1:
        thing = f"a {name}"
    return form.format(thing=thing, things=plural(name) if name else "", name=name)
