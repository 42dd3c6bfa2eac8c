"""What all premises are measured on: yes/no questions about dev scenes, answered by the first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.evals.pope.build import ImageObjects, build_questions
from lvlm_attn.prompts.chat import encode_prompts
from lvlm_attn.toy import scenes
from lvlm_attn.toy.prompts import pope_question
from lvlm_attn.toy.scene import Scene

_BATCH = 32


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        premise: What must hold.
        measured: The numbers, in words.
        wanted: What they are to be.
        holds: Whether they are.
    """

    premise: str
    measured: str
    wanted: str
    holds: bool


@dataclass(frozen=True)
class Asked:
    """A question.

    Attributes:
        scene: What it is about.
        name: The object asked about.
        is_there: The right answer.
    """

    scene: Scene
    name: str
    is_there: bool

    @property
    def text(self) -> str:
        """The question in POPE's words."""
        return pope_question(self.name)


def questions(count: int, split: str = "dev") -> list[Asked]:
    """POPE's questions about the first scenes of a split, all three kinds, each once."""
    shown = {scene.id: scene for scene in scenes(split, count)}
    built = build_questions([ImageObjects(scene.id, scene.names) for scene in shown.values()], k=3, seed=0)
    texts = {}
    for group in built.values():
        for item in group:
            texts[item.image, item.text] = item
    found = []
    for (image, text), item in texts.items():
        name = next(name for name in _names() if pope_question(name) == text)
        found.append(Asked(shown[image], name, item.label == "yes"))
    return found


def _names() -> Sequence[str]:
    from lvlm_attn.toy import vocabulary

    return vocabulary()


def batches(processor: Any, images: Sequence[Any] | None, texts: Sequence[str]) -> list[Any]:
    """Encoded prompts, in batches."""
    return [
        encode_prompts(
            processor, None if images is None else images[at : at + _BATCH], texts[at : at + _BATCH]
        )
        for at in range(0, len(texts), _BATCH)
    ]


@torch.no_grad()
def yes_margin(model: Any, processor: Any, images: Sequence[Any] | None, texts: Sequence[str]) -> Tensor:
    """`(questions,)`: how much likelier Yes is than No as the first token, in logits."""
    words = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    found = [model(**inputs).logits[:, -1, words] for inputs in batches(processor, images, texts)]
    logits = torch.cat(found)
    return logits[:, 0] - logits[:, 1]


def accuracy(
    model: Any, processor: Any, asked: Sequence[Asked], picture: Callable[[Asked], Any] | None = None
) -> float:
    """Share of questions that are answered rightly.

    Args:
        model: the toy.
        processor: its processor.
        asked: the questions.
        picture: what to show for each; None for its scene.
    """
    images = [item.scene.image if picture is None else picture(item) for item in asked]
    margin = yes_margin(model, processor, images, [item.text for item in asked])
    truth = torch.tensor([item.is_there for item in asked])
    return float(((margin > 0) == truth).float().mean())
