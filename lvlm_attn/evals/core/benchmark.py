"""What a benchmark is to the runner: samples to ask, and a score for the lines that come back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Sample:
    """One picture and one prompt.

    Attributes:
        sample_id: unique in the benchmark; names the sample in the run folder.
        image: the picture, or the path it is read from when its turn comes.
        image_name: the name written to the result line; equal names mean equal pictures.
        prompt: what the user asks, without chat template and without suffix.
        fields: further keys of the result line, such as ``question_id`` or ``label``.
    """

    sample_id: str
    image: Image | Path
    image_name: str
    prompt: str
    fields: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Protocol):
    """The interface a benchmark file offers; nothing else of it is known to the runner.

    Attributes:
        name: short name, written to the result.
        max_new_tokens: length limit unless the user sets one.
        asks_yes_no: whether the probabilities of yes and no at the first answer token are worth keeping.

    One that is also, or only, answered by the letters A and B says so by ``asks_letters``.
    """

    name: str
    max_new_tokens: int
    asks_yes_no: bool

    def samples(self) -> Sequence[Sample]:
        """The samples in a fixed order."""
        ...

    def describe(self) -> dict[str, Any]:
        """What is asked, by hash and number: two runs with other answers here are different runs."""
        ...

    def scoring(self) -> dict[str, Any]:
        """How answers become metrics; it may change without asking anything again."""
        ...

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Metrics, JSON-ready, from result lines; lines with ``error`` are counted as failed."""
        ...


def asks_letters(benchmark: Benchmark) -> bool:
    """Whether some of a benchmark's questions are answered by a letter."""
    return bool(getattr(benchmark, "asks_letters", False))
