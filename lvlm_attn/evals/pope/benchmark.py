"""POPE as a benchmark: yes/no questions about objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.parsers import get_parser
from lvlm_attn.evals.core.pictures import PictureFolder, require_images
from lvlm_attn.evals.pope.answers import Answered
from lvlm_attn.evals.pope.data import PopeData, Question, load_questions
from lvlm_attn.evals.pope.score import score_pope


class Pope:
    """POPE questions with their pictures.

    Args:
        questions: the questions.
        images: the picture, or its path, by the name in the questions.
        dataset: what the questions are, for the run's settings.
        parser: the rule that reads an answer.
        limit: keep only the first so many questions of each category.
        remarks: what a user should know about the files.

    Raises:
        LvlmAttnError: unknown parser, a limit below 1, or a question without a label.
    """

    name = "pope"
    max_new_tokens = 16
    asks_yes_no = True

    def __init__(
        self,
        questions: Sequence[Question],
        images: Mapping[str, Any],
        dataset: Mapping[str, Any],
        parser: str = "strict",
        limit: int | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        get_parser(parser)
        self.remarks = tuple(remarks)
        self.questions, self.limit = first_of_each(questions, limit), limit
        self._images, self._dataset, self._parser = images, dict(dataset), parser
        bare = next((item for item in self.questions if item.label is None), None)
        if bare is not None:
            raise LvlmAttnError(
                f"question {bare.sample_id} has no label; name the labelled POPE files with --questions as well."
            )

    @classmethod
    def from_files(
        cls,
        paths: Iterable[str | Path],
        images: str | Path,
        parser: str = "strict",
        limit: int | None = None,
        fix_typo: bool = False,
    ) -> Pope:
        """Reads question files; pictures are found by any of their names and opened when their turn comes.

        Raises:
            LvlmAttnError: as :func:`lvlm_attn.evals.pope.data.load_questions`, or no picture is in the
                folder.
        """
        data = load_questions(paths, fix_typo)
        folder = PictureFolder(images)
        found = {name: folder.find(name) for name in dict.fromkeys(item.image for item in data.questions)}
        require_images(folder.path, found.values())
        remarks = [warning for info in data.files for warning in info.warnings]
        return cls(data.questions, found, describe_files(data, fix_typo), parser, limit, remarks)

    def samples(self) -> list[Sample]:
        """One sample per question, in file order."""
        return [
            Sample(
                sample_id=item.sample_id,
                image=self._images[item.image],
                image_name=item.image,
                prompt=item.text,
                fields={"question_id": item.question_id, "category": item.category, "label": item.label},
            )
            for item in self.questions
        ]

    def describe(self) -> dict[str, Any]:
        """What the questions are."""
        return {"name": self.name, **self._dataset}

    def scoring(self) -> dict[str, Any]:
        """The rule that reads answers."""
        return {"parser": self._parser}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Scores result lines with the chosen parser."""
        answered, failed = self.pairs(lines)
        return score_pope(answered, self._parser, failed)

    def pairs(self, lines: Sequence[Mapping[str, Any]]) -> tuple[list[Answered], int]:
        """Questions with their raw answers, and how many failed."""
        texts = {line["sample_id"]: line["raw_text"] for line in lines if not line.get("error")}
        answered = [
            Answered(item, texts[item.sample_id]) for item in self.questions if item.sample_id in texts
        ]
        return answered, len(self.questions) - len(answered)


def first_of_each(questions: Sequence[Question], limit: int | None) -> tuple[Question, ...]:
    """Keeps the first ``limit`` questions of each category, all without a limit."""
    if limit is None:
        return tuple(questions)
    if limit < 1:
        raise LvlmAttnError(f"limit is {limit}; it must be at least 1.")
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.category] = seen.get(question.category, 0) + 1
        if seen[question.category] <= limit:
            kept.append(question)
    return tuple(kept)


def describe_files(data: PopeData, fix_typo: bool) -> dict[str, Any]:
    """Name, hash, rows and typos of each question file."""
    return {
        "files": [
            {"name": info.path, "sha256": info.sha256, "rows": info.rows, "typos": info.typos}
            for info in data.files
        ],
        "fix_typo": fix_typo,
    }
