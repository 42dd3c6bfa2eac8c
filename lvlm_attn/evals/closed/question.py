"""A question with two possible answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from lvlm_attn.evals.core.stored import StoredPicture


@dataclass(frozen=True)
class ClosedQuestion:
    """One question about one picture.

    Attributes:
        sample_id: unique in the benchmark.
        question_id: the id in the benchmark's files, as a key; several questions may share it.
        image: name of the picture; equal names mean equal pictures.
        text: the question as it is sent to the model, before any suffix.
        label: the right answer: `yes`, `no`, or a letter, `A` or `B`.
        picture: where the picture is read from.
        part: the part of the benchmark it belongs to, such as a sub-task.
        cluster: what is resampled as one in statistics: the picture, or all pictures of one set.
        groups: names of the groups of questions it counts in, by kind of group.
        options: what the letters stand for, where it is answered by a letter.
        object: the object asked for, where there is one.
    """

    sample_id: str
    question_id: str
    image: str
    text: str
    label: str
    picture: Path | StoredPicture
    part: str = "all"
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    object: str = ""

    def fields(self, sizes: Mapping[tuple[str, str], int]) -> dict[str, Any]:
        """What a result line keeps, so that it can be scored by itself.

        Args:
            sizes: how many questions each group has, by kind and name.
        """
        found: dict[str, Any] = {
            "question_id": self.question_id,
            "category": self.part,
            "label": self.label,
            "cluster": self.cluster or self.image,
        }
        if self.groups:
            found["groups"] = {kind: [name, sizes[kind, name]] for kind, name in self.groups.items()}
        if self.options:
            found["options"] = list(self.options)
        if self.object:
            found["object"] = self.object
        return found
