"""AMBER's generative part as a benchmark: one description per picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.amber.score import MATCHING
from lvlm_attn.evals.amber.tally import tally_for
from lvlm_attn.evals.amber.words import WordLists, read_lists
from lvlm_attn.evals.closed.amber_d import query_files
from lvlm_attn.evals.closed.folder import DataFolder, text_in
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.fields import flatten
from lvlm_attn.evals.core.parsers import without_reasoning
from lvlm_attn.evals.core.pictures import require_images
from lvlm_attn.evals.core.records import read_records

_QUERIES = ("query_generative.json", "query_all.json")


@dataclass(frozen=True)
class Described:
    """One picture to describe.

    Attributes:
        sample_id: its number in AMBER, which is `question_id` as well.
        image: the name of the picture.
        text: what is asked.
        picture: its file.
        truth: the objects in it.
        hallu: objects likely to be hallucinated.
    """

    sample_id: str
    image: str
    text: str
    picture: Path
    truth: tuple[str, ...]
    hallu: tuple[str, ...]

    @property
    def question_id(self) -> str:
        """The id in AMBER's files."""
        return self.sample_id

    def fields(self) -> dict[str, Any]:
        """What a result line keeps, so that it can be scored with the word lists alone."""
        return {"question_id": self.sample_id, "truth": list(self.truth), "hallu": list(self.hallu)}


class AmberCaptions:
    """Pictures to describe, with AMBER's annotations and word lists.

    Args:
        pictures: the pictures.
        lists: AMBER's words.
        images: the folder of the pictures.
        limit: keep only the first so many.

    Raises:
        LvlmAttnError: no pictures, or a limit below 1.
    """

    name = "amber-g"
    max_new_tokens = 512
    asks_yes_no = False

    def __init__(
        self,
        pictures: Sequence[Described],
        lists: WordLists,
        images: Path | None = None,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise LvlmAttnError(f"limit is {limit}; it must be at least 1.")
        if not pictures:
            raise LvlmAttnError("AMBER: there are no generative queries; pass the folder of its data.")
        self.pictures, self.lists, self._images = tuple(pictures[:limit]), lists, images
        self.limit = limit

    @classmethod
    def from_folder(
        cls, data: str | Path, images: str | Path | None = None, limit: int | None = None
    ) -> AmberCaptions:
        """Reads a user's copy of AMBER; pictures are opened when their turn comes.

        Raises:
            LvlmAttnError: a file is missing or damaged.
        """
        folder = DataFolder(Path(data), None if images is None else Path(images), "AMBER")
        lists = read_lists(folder.require("relation.json"), folder.require("safe_words.txt"))
        truths = {
            text_in(record.value, ("id",), f"AMBER annotations, {record.where}"): record.value
            for record in read_records(folder.require("annotations.json"), "AMBER annotations").records
        }
        found = []
        (path,) = query_files(folder, _QUERIES)
        for record in read_records(path, "AMBER queries").records:
            value, where = flatten(record.value), f"AMBER queries {path}, {record.where}"
            number = text_in(value, ("id",), where)
            truth = truths.get(number)
            if truth is None:
                raise LvlmAttnError(
                    f"{where}: query {number} has no annotation; the two files do not belong together."
                )
            if truth.get("type") != "generative":
                continue
            image = text_in(value, ("image",), where)
            objects = [_words(truth, key, number) for key in ("truth", "hallu")]
            asked = text_in(value, ("query", "question"), where)
            found.append(Described(number, image, asked, folder.picture(image), *objects))
        return cls(found, lists, folder.pictures, limit)

    def samples(self) -> list[Sample]:
        """One sample per picture.

        Raises:
            LvlmAttnError: none of the pictures is there; single missing ones only fail their samples.
        """
        if self._images is not None:
            require_images(self._images, [item.picture for item in self.pictures])
        return [
            Sample(item.sample_id, item.picture, item.image, item.text, item.fields())
            for item in self.pictures
        ]

    def describe(self) -> dict[str, Any]:
        """What is asked, by hash and number."""
        told = [(item.sample_id, item.image, item.text, item.truth, item.hallu) for item in self.pictures]
        digest = sha256(json.dumps(told).encode()).hexdigest()
        return {"name": self.name, "pictures": len(self.pictures), "pictures_sha256": digest}

    def scoring(self) -> dict[str, Any]:
        """The word lists, and how nouns are matched with objects."""
        return {**self.lists.to_dict(), "matching": MATCHING}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Scores result lines."""
        return score_lines(lines, self.scoring())


def score_lines(lines: Sequence[Mapping[str, Any]], scoring: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of result lines.

    Args:
        lines: with ``raw_text``, ``truth`` and ``hallu``.
        scoring: the word lists, as :meth:`AmberCaptions.scoring` gives them.

    Raises:
        LvlmAttnError: nothing to score.
    """
    answered = [line for line in lines if not line.get("error")]
    if not answered:
        raise LvlmAttnError("there are no descriptions to score; did every sample fail?")
    tally = tally_for(scoring)
    sums = [sum(column) for column in zip(*tally.counts(answered, scoring), strict=True)]
    texts = [str(line.get("raw_text") or "") for line in answered]
    return {
        "benchmark": AmberCaptions.name,
        "matching": MATCHING,
        **tally.metrics(sums),
        "n": len(answered),
        "failed": len(lines) - len(answered),
        "reasoning": sum(without_reasoning(text)[1] for text in texts),
        "nouns": int(sums[1]),
        "hallucinated_nouns": int(sums[0]),
    }


def _words(truth: Mapping[str, Any], key: str, number: str) -> tuple[str, ...]:
    value = truth.get(key)
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise LvlmAttnError(f"AMBER annotation {number}: {key} is {shown(value)}, expected a list of words.")
    return tuple(value)
