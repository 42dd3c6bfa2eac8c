"""Which objects occur together: the contexts of the toy world, and how a scene is drawn from them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from lvlm_attn.toy.sprites import SPRITES, vocabulary

Rng: TypeAlias = np.random.Generator

#: For each context: its usual background colour, and its objects with their relative frequency.
_CONTEXTS: dict[str, tuple[tuple[int, int, int], dict[str, float]]] = {
    "street": (
        (190, 190, 195),
        {
            "person": 5,
            "car": 5,
            "bicycle": 3,
            "motorcycle": 2,
            "bus": 2,
            "truck": 2,
            "traffic light": 3,
            "stop sign": 1.5,
        },
    ),
    "beach": (
        (170, 215, 235),
        {"person": 4, "boat": 3, "umbrella": 3, "kite": 2, "bird": 3, "frisbee": 1, "dog": 1},
    ),
    "farm": (
        (185, 215, 160),
        {"person": 2, "horse": 3, "sheep": 3, "cow": 3, "dog": 3, "cat": 1.5, "bird": 1},
    ),
    "savanna": ((225, 205, 150), {"elephant": 3, "zebra": 3, "giraffe": 3, "bear": 1.5, "bird": 1.5}),
    "kitchen": (
        (235, 225, 205),
        {
            "bottle": 3,
            "cup": 4,
            "fork": 3,
            "knife": 3,
            "spoon": 3,
            "bowl": 3,
            "banana": 2,
            "apple": 2,
            "orange": 2,
        }
        | {"broccoli": 1.5, "carrot": 1.5, "person": 2},
    ),
    "restaurant": (
        (230, 200, 180),
        {
            "pizza": 3,
            "sandwich": 2,
            "hot dog": 2,
            "donut": 2,
            "cake": 2,
            "wine glass": 3,
            "cup": 2,
            "fork": 2.5,
        }
        | {"knife": 2.5, "person": 3, "bottle": 2},
    ),
    "living room": (
        (220, 205, 195),
        {
            "chair": 4,
            "couch": 4,
            "potted plant": 3,
            "tv": 3,
            "book": 3,
            "clock": 2,
            "vase": 2,
            "teddy bear": 1.5,
        }
        | {"cat": 1.5, "person": 2},
    ),
    "office": (
        (205, 210, 220),
        {
            "laptop": 4,
            "mouse": 3,
            "keyboard": 3,
            "cell phone": 2.5,
            "scissors": 1,
            "book": 2,
            "cup": 2,
            "chair": 2,
        }
        | {"tie": 1.5, "person": 2},
    ),
    "bedroom": (
        (215, 200, 225),
        {
            "bed": 4,
            "teddy bear": 2,
            "toilet": 2,
            "toothbrush": 2,
            "clock": 2,
            "book": 2,
            "cell phone": 1,
            "cat": 1,
        },
    ),
    "park": (
        (180, 220, 180),
        {
            "person": 4,
            "sports ball": 3,
            "skateboard": 3,
            "frisbee": 3,
            "backpack": 2,
            "dog": 3,
            "kite": 2,
            "bicycle": 2,
        }
        | {"skis": 1.5},
    ),
    "station": (
        (200, 200, 210),
        {
            "airplane": 2.5,
            "train": 3,
            "suitcase": 4,
            "handbag": 3,
            "backpack": 2.5,
            "tie": 1.5,
            "person": 4,
            "clock": 1.5,
        },
    ),
}
#: Background colour and object frequencies of each context.
CONTEXTS = MappingProxyType(_CONTEXTS)

_CONTEXT_SHARE = 0.85  # of the objects of a scene, how many come from its context rather than from anywhere
_TWIN_SHARE = 0.12  # how often a further object repeats a category already drawn


@dataclass(frozen=True)
class WorldConfig:
    """How hard the pictures are.

    Attributes:
        size: Side of a picture in pixels.
        sides: Smallest and largest length of an object's longer side, in pixels.
        contrast: Smallest and largest opacity of an object that is faint.
        faint_share: How many objects are faint.
        hide_share: How many objects are placed so that they partly cover an earlier one or leave the picture.
        min_visible: Smallest share of an object's pixels that must stay in sight.
        noise: Largest standard deviation of the pixel noise, on a 0 to 255 scale.
    """

    size: int = 144
    sides: tuple[int, int] = (17, 54)
    contrast: tuple[float, float] = (0.28, 0.7)
    faint_share: float = 0.3
    hide_share: float = 0.35
    min_visible: float = 0.3
    noise: float = 14.0


def contexts() -> dict[str, tuple[str, ...]]:
    """Returns the objects typical of each context.

    Example:
        >>> contexts()["savanna"]
        ('elephant', 'zebra', 'giraffe', 'bear', 'bird')
    """
    return {name: tuple(objects) for name, (_, objects) in CONTEXTS.items()}


@functools.cache
def popular(count: int) -> tuple[str, ...]:
    """Returns the objects that are drawn most often over all contexts, the most frequent first.

    Example:
        >>> popular(2)
        ('person', 'book')
    """
    share = dict.fromkeys(vocabulary(), 0.0)
    for _, objects in CONTEXTS.values():
        for name, weight in objects.items():
            share[name] += weight / sum(objects.values())
    return tuple(sorted(share, key=lambda name: -share[name])[:count])


def draw_context(rng: Rng) -> str:
    """Returns a context, all equally likely."""
    return list(CONTEXTS)[int(rng.integers(len(CONTEXTS)))]


def draw_names(rng: Rng, context: str, count: int, classes: int | None = None) -> list[str]:
    """Draws the objects of a scene.

    Args:
        rng: Source of randomness.
        context: A name of ``contexts()``.
        count: How many objects.
        classes: Draw uniformly from the first so many categories and ignore the context (for a curriculum).

    Returns:
        The names, in drawing order; a name may occur more than once.
    """
    everything = vocabulary()
    if classes is not None:
        return [everything[int(rng.integers(classes))] for _ in range(count)]
    typical = CONTEXTS[context][1]
    weights = np.array(list(typical.values())) / sum(typical.values())
    drawn: list[str] = []
    for _ in range(count):
        if drawn and rng.random() < _TWIN_SHARE:
            drawn.append(drawn[int(rng.integers(len(drawn)))])
            continue
        for _ in range(20):
            if rng.random() < _CONTEXT_SHARE:
                name = list(typical)[int(rng.choice(len(weights), p=weights))]
            else:
                name = everything[int(rng.integers(len(everything)))]
            if name not in drawn:
                break
        drawn.append(name)
    return drawn


def draw_background(rng: Rng, context: str) -> tuple[float, float, float]:
    """Returns a background colour: near the context's own in two scenes of three, any light colour otherwise."""
    if rng.random() < 2 / 3:
        base = np.array(CONTEXTS[context][0], dtype=np.float64) + rng.normal(0, 14, 3)
    else:
        base = rng.uniform(110, 255, 3)
    red, green, blue = np.clip(base, 60, 255)
    return float(red), float(green), float(blue)


def variants(name: str) -> int:
    """Returns how many sprites a category has."""
    return len(SPRITES[name])
