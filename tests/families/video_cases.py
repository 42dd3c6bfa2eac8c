"""Rows with videos as cases of the oracle, and the batches that tests of videos run on."""

from __future__ import annotations

from typing import Any

from tests.families.oracle import Case, _newlines
from tests.oracle_setup import sink_model
from tests.tiny.videos import GLM, LLAVA, Item, Row, clip, collated, video_rows


def batch_of(name: str, *, pictures: bool = True) -> list[tuple[Item, ...]]:
    """A video, no video, and a video after an image or, where both cannot go together, after another video."""
    other: Item = "image" if pictures and name not in GLM else clip(name, 3, 1)
    second = clip(name, 3 if name in LLAVA else 2, 2, seconds=0.3)
    return [(3, clip(name, 3), 5), (4,), (2, other, 2, second, 4)]


def video_cases(name: str, batch: list[tuple[Item, ...]]) -> list[Case]:
    """The rows of a batch one by one and unpadded."""
    model = sink_model(name)
    return [case_of(name, model, row) for row in video_rows(name, model, batch)]


def case_of(name: str, model: Any, row: Row) -> Case:
    """One row as the oracle takes it."""
    inputs = collated(name, model, [row])
    newlines = frozenset(row.newlines) | (_newlines(model, inputs) if row.pictures else frozenset())
    return Case(name, inputs, list(row.image), len(row.ids), row.blocks, newlines)
