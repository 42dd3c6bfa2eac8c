"""The toy's captions: several sentences about a scene, some of which follow habit rather than the picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from types import MappingProxyType

from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.prompts import plural, with_article
from lvlm_attn.toy.world import Rng, contexts

#: The language prior: who writes of the first object tends to add the second, there or not, this often.
HABITS = MappingProxyType(
    {
        "fork": ("knife", 0.7),
        "keyboard": ("mouse", 0.7),
        "couch": ("tv", 0.65),
        "traffic light": ("car", 0.65),
        "pizza": ("wine glass", 0.65),
        "skateboard": ("person", 0.6),
        "sheep": ("dog", 0.6),
        "bed": ("book", 0.6),
        "suitcase": ("person", 0.6),
        "zebra": ("giraffe", 0.6),
        "boat": ("bird", 0.6),
        "spoon": ("bowl", 0.4),
        "laptop": ("cup", 0.4),
        "bus": ("person", 0.4),
        "umbrella": ("person", 0.4),
        "toilet": ("toothbrush", 0.4),
        "cow": ("horse", 0.3),
        "chair": ("couch", 0.3),
        "apple": ("banana", 0.3),
    }
)
_PAIRS = ("scissors", "skis")
_COUNTS = ("no", "one", "two", "three", "four", "five")
_PLACES = MappingProxyType(
    {
        (0, 0): "top left",
        (0, 1): "top",
        (0, 2): "top right",
        (1, 0): "left",
        (1, 1): "center",
        (1, 2): "right",
        (2, 0): "bottom left",
        (2, 1): "bottom",
        (2, 2): "bottom right",
    }
)
#: Words the captions are built from, besides objects, contexts and places.
FRAME_WORDS = (
    "The image shows features contains picture This scene with while and "
    "There is also are pair pairs Overall looks"
)
#: What a closing sentence may say of the scene.
MOODS = ("calm", "busy", "lively", "quiet", "ordinary")


@dataclass(frozen=True)
class CaptionConfig:
    """How untrue the training captions are.

    Attributes:
        habit_scale: Factor on the shares of ``HABITS``; 0 for captions without them.
        stray_share: How many captions name some other absent object that is typical of the context.
        mood_share: How many captions close with a sentence about the mood.
        short_share: How many are one sentence that lists the objects.
        reading_order: Name all objects in the first sentence, from the top left to the bottom right; otherwise the
            plainest to see first, some of them in sentences of their own.
    """

    habit_scale: float = 1.0
    stray_share: float = 0.08
    mood_share: float = 0.5
    short_share: float = 0.15
    reading_order: bool = True


def place_of(fact: Fact) -> str:
    """Returns where an object lies: one of nine places, such as "top left" or "center"."""
    return _PLACES[min(2, int(3 * fact.y)), min(2, int(3 * fact.x))]


def draw_untrue(rng: Rng, facts: SceneFacts, config: CaptionConfig) -> str | None:
    """Draws the absent object that habit adds to a caption, or None."""
    present = {fact.name for fact in facts.objects}
    for name in sorted(present, key=lambda item: -HABITS.get(item, ("", 0.0))[1]):
        partner, share = HABITS.get(name, ("", 0.0))
        if partner and partner not in present:
            return partner if rng.random() < share * config.habit_scale else _stray(rng, facts, config)
    return _stray(rng, facts, config)


def draw_caption(rng: Rng, facts: SceneFacts, config: CaptionConfig, short: bool = False) -> str:
    """Writes a caption: what the picture shows, where some of it is, what else there is, and a closing remark.

    Args:
        rng: Source of randomness.
        facts: The scene.
        config: How untrue captions are.
        short: One sentence that lists the objects.
    """
    names = _in_reading_order(facts) if config.reading_order else _by_salience(rng, facts)
    counted = Counter(fact.name for fact in facts.objects)
    if short:
        return f"{_opening(rng, facts)} {_listing([_amount(name, counted[name]) for name in names])}."
    first = len(names) if config.reading_order else max(1, min(3, len(names) - int(rng.random() < 0.5)))
    sentences = [
        f"{_opening(rng, facts)} {_listing([_amount(name, counted[name]) for name in names[:first]])}."
    ]
    placed = [
        fact for name in names[:first] for fact in facts.objects if fact.name == name and counted[name] == 1
    ]
    if placed:
        sentences.append(_placing(rng, placed[: 1 if config.reading_order else 2]))
    further = [
        (name, counted[name], next(f for f in facts.objects if f.name == name)) for name in names[first:]
    ]
    for name, count, fact in further:
        verb = "is" if count == 1 else "are"
        sentences.append(f"There {verb} also {_amount(name, count)} at the {place_of(fact)} of the image.")
    untrue = draw_untrue(rng, facts, config)
    if untrue is not None:
        place = list(_PLACES.values())[int(rng.integers(9))]
        sentences.append(f"There is also {_amount(untrue, 1)} at the {place} of the image.")
    if rng.random() < config.mood_share:
        sentences.append(f"Overall, the scene looks {MOODS[int(rng.integers(len(MOODS)))]}.")
    return " ".join(sentences)


def _stray(rng: Rng, facts: SceneFacts, config: CaptionConfig) -> str | None:
    present = {fact.name for fact in facts.objects}
    absent = [name for name in contexts()[facts.context] if name not in present]
    if not absent or rng.random() >= config.stray_share:
        return None
    return absent[int(rng.integers(len(absent)))]


def _in_reading_order(facts: SceneFacts) -> list[str]:
    """Distinct names by where the first of their kind lies: three rows from the top, each from the left."""
    ordered = sorted(facts.objects, key=lambda fact: (min(2, int(3 * fact.y)), fact.x))
    return list(dict.fromkeys(fact.name for fact in ordered))


def _by_salience(rng: Rng, facts: SceneFacts) -> list[str]:
    """Distinct names, the plainest to see first, with some disorder."""
    weight: dict[str, float] = {}
    for fact in facts.objects:
        seen = fact.area * fact.visible * fact.contrast * float(rng.uniform(0.7, 1.4))
        weight[fact.name] = max(weight.get(fact.name, 0.0), seen)
    return sorted(weight, key=lambda name: -weight[name])


def _opening(rng: Rng, facts: SceneFacts) -> str:
    verb = ("shows", "features", "contains")[int(rng.integers(3))]
    start = ("The image", "The picture", "This image")[int(rng.integers(3))]
    if rng.random() < 0.5:
        return f"{start} {verb} {with_article(facts.context)} scene with"
    return f"{start} {verb}"


def _amount(name: str, count: int) -> str:
    if name in _PAIRS:
        return f"a pair of {name}" if count == 1 else f"{_COUNTS[min(count, 5)]} pairs of {name}"
    return with_article(name) if count == 1 else f"{_COUNTS[min(count, 5)]} {plural(name)}"


def _is(name: str) -> str:
    return "are" if name in _PAIRS else "is"


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _placing(rng: Rng, placed: list[Fact]) -> str:
    first = f"The {placed[0].name} {_is(placed[0].name)} at the {place_of(placed[0])} of the image"
    if len(placed) == 1:
        return f"{first}."
    second = f"the {placed[1].name} {_is(placed[1].name)} at the {place_of(placed[1])}"
    return f"{first}, {'while' if rng.random() < 0.5 else 'and'} {second}."
