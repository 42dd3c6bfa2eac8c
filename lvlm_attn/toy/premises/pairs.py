"""Premise 7: of two pictures in one prompt the model looks at the one it is asked about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lvlm_attn.toy.data import ORDINALS
from lvlm_attn.toy.pair_texts import about
from lvlm_attn.toy.premises.asking import Asked, Row, yes_margin
from lvlm_attn.toy.scene import Scene

_LOST = 0.05  # how much accuracy a second picture may cost
_MIXED = 0.1  # how much more often an object may be affirmed that only the other picture shows


@dataclass(frozen=True)
class _About:
    """What is said about pictures that stand at one place of the prompt.

    Attributes:
        right: Share of right answers to the questions.
        mixed: Share of objects of the other picture that are affirmed.
    """

    right: float
    mixed: float


def measure(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """Asks about the first and about the second of two pictures what is asked about the one alone.

    The other picture is that of the next scene. How often the objects of that one, which the picture asked about does
    not show, are affirmed is measured on questions of their own, put to the picture alone as well.
    """
    scenes = list({item.scene.id: item.scene for item in asked}.values())
    after = {scene.id: scenes[(at + 1) % len(scenes)] for at, scene in enumerate(scenes)}
    foreign = [
        Asked(scene, name, False)
        for scene in scenes
        for name in dict.fromkeys(after[scene.id].names)
        if name not in scene.names
    ]
    alone = _answers(model, processor, asked, foreign, after, None)
    placed = [_answers(model, processor, asked, foreign, after, which) for which in range(len(ORDINALS))]
    parts = [f"about the {name} {found.right:.1%} right" for name, found in zip(ORDINALS, placed)]
    mixed = [f"{found.mixed:.1%} asked about the {name}" for name, found in zip(ORDINALS, placed)]
    return [
        Row(
            "Pairs: questions about one of two pictures",
            f"{', '.join(parts)}; the picture alone {alone.right:.1%} ({len(asked)} questions)",
            "at most 5 points below the picture alone",
            min(found.right for found in placed) >= alone.right - _LOST,
        ),
        Row(
            "Pairs: objects of the other picture",
            f"affirmed: {', '.join(mixed)}, {alone.mixed:.1%} without the other picture ({len(foreign)} questions)",
            "at most 10 points more than without",
            max(found.mixed for found in placed) <= alone.mixed + _MIXED,
        ),
    ]


def _answers(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    foreign: Sequence[Asked],
    after: dict[str, Scene],
    which: int | None,
) -> _About:
    """Asks about a picture at one place of two, or alone."""

    def shown(item: Asked) -> Any:
        if which is None:
            return item.scene.image
        other = after[item.scene.id].image
        return [item.scene.image, other] if which == 0 else [other, item.scene.image]

    every = [*asked, *foreign]
    texts = [item.text if which is None else about(item.text, which) for item in every]
    is_yes = yes_margin(model, processor, [shown(item) for item in every], texts) > 0
    truth = torch.tensor([item.is_there for item in asked])
    return _About(
        float((is_yes[: len(asked)] == truth).float().mean()),
        float(is_yes[len(asked) :].float().mean()),
    )
