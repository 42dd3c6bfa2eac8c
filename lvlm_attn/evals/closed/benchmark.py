"""Closed questions as a benchmark for the runner."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.closed.cells import Cells
from lvlm_attn.evals.closed.folder import DataFolder
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.rules import require_rule, verdict
from lvlm_attn.evals.closed.spec import Closed
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.parsers import read_strictly
from lvlm_attn.evals.core.pictures import require_images

if TYPE_CHECKING:
    from PIL.Image import Image


class ClosedBenchmark:
    """Questions with two possible answers, with their pictures.

    Args:
        spec: which benchmark it is.
        questions: the questions.
        parser: the rule that reads an answer.
        subsets: names of parts, or of several parts, to keep; empty for all.
        limit: keep only the first so many pictures, or sets of them, of each part.
        remarks: what a user should know about the files.

    Raises:
        LvlmAttnError: no questions, two of one id, an unknown rule or part, or a limit below 1.
    """

    def __init__(
        self,
        spec: Closed,
        questions: Sequence[ClosedQuestion],
        parser: str = "strict",
        subsets: Sequence[str] = (),
        limit: int | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        if not questions:
            raise LvlmAttnError(f"{spec.title}: there are no questions; is it the right folder?")
        repeated = next(
            (name for name, n in Counter(item.sample_id for item in questions).items() if n > 1), None
        )
        if repeated is not None:
            raise LvlmAttnError(f"{spec.title}: question {repeated} is there twice; fetch the files again.")
        require_rule(parser, any(item.options for item in questions))
        self.spec, self.remarks = spec, tuple(remarks)
        self.questions, self.limit = _first(_of_parts(spec, questions, subsets), limit), limit
        self.name, self.max_new_tokens = spec.name, spec.max_new_tokens
        self.asks_letters = any(item.options for item in self.questions)
        self.asks_yes_no = not all(item.options for item in self.questions)
        self._parser, self._subsets = parser, tuple(subsets)
        self._pictures: Path | None = None
        self._sizes = Counter((kind, name) for item in self.questions for kind, name in item.groups.items())

    @classmethod
    def from_folder(
        cls,
        spec: Closed,
        data: str | Path,
        images: str | Path | None = None,
        parser: str = "strict",
        subsets: Sequence[str] = (),
        limit: int | None = None,
    ) -> ClosedBenchmark:
        """Reads a user's copy of the benchmark; pictures are opened when their turn comes.

        Raises:
            LvlmAttnError: a file is missing or damaged.
        """
        folder = DataFolder(Path(data), None if images is None else Path(images), spec.title)
        questions = spec.read(folder)
        found = cls(spec, questions, parser, subsets, limit, folder.remarks)
        found._pictures = folder.pictures
        return found

    def samples(self) -> list[Sample]:
        """One sample per question, in the order of the files.

        Raises:
            LvlmAttnError: none of the pictures is there; single missing ones only fail their samples.
        """
        paths = [item.picture for item in self.questions if isinstance(item.picture, Path)]
        if self._pictures is not None:
            require_images(self._pictures, paths)
        return [
            Sample(
                sample_id=item.sample_id,
                image=cast("Image | Path", item.picture),
                image_name=item.image,
                prompt=item.text,
                fields=item.fields(self._sizes),
            )
            for item in self.questions
        ]

    def of_samples(self, names: Collection[str]) -> ClosedBenchmark:
        """The same benchmark with some of its questions; groups have to be in it whole or not at all.

        Args:
            names: their `sample_id`.
        """
        questions = [item for item in self.questions if item.sample_id in names]
        found = ClosedBenchmark(self.spec, questions, self._parser)
        found._subsets, found._pictures, found.remarks = self._subsets, self._pictures, self.remarks
        return found

    def fields(self) -> dict[str, dict[str, Any]]:
        """What the result line of each question keeps, by its `sample_id`."""
        return {item.sample_id: item.fields(self._sizes) for item in self.questions}

    def describe(self) -> dict[str, Any]:
        """What is asked, by hash and number."""
        told = [(item.sample_id, item.image, item.text, item.label) for item in self.questions]
        return {
            "name": self.name,
            "questions": len(self.questions),
            "questions_sha256": sha256(json.dumps(told).encode()).hexdigest(),
            "subsets": list(self._subsets),
        }

    def scoring(self) -> dict[str, Any]:
        """The rule that reads answers, and the parts in their order."""
        return {"parser": self._parser, "parts": parts_of(self.spec, [item.part for item in self.questions])}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Scores result lines."""
        return score_lines(self.spec, lines, self.scoring())


def score_lines(
    spec: Closed, lines: Sequence[Mapping[str, Any]], scoring: Mapping[str, Any]
) -> dict[str, Any]:
    """Metrics of result lines, which tell their own right answers.

    Returns:
        One JSON-ready object: the benchmark's metrics, counts, ``groups`` (how many of each kind are complete),
        ``unknown`` (answers the rule cannot read, counted as wrong), and the counts of every part.

    Raises:
        LvlmAttnError: nothing to score.
    """
    answered = [line for line in lines if not line.get("error")]
    if not answered:
        raise LvlmAttnError("there are no answers to score; did every sample fail?")
    parts = spec.score(answered, scoring)
    readings = [read_strictly(str(line.get("raw_text") or "")) for line in answered]
    objects: Counter[str] = Counter()
    for line in answered:
        if line.get("object") and line["label"] == "no":
            said = verdict(str(line.get("raw_text") or ""), "no", (), scoring["parser"])
            objects[line["object"]] += said == "yes"
    return {
        "benchmark": spec.name,
        "parser": scoring["parser"],
        **spec.metrics(parts),
        "n": len(answered),
        "failed": len(lines) - len(answered),
        "unknown": int(sum(cells.unknown for cells in parts.values())),
        "groups": {kind: int(sum(cells.groups[kind][1] for cells in parts.values())) for kind in spec.kinds},
        "reasoning": sum(reading.reasoning for reading in readings),
        "images": len({line.get("image") for line in answered}),
        "per_category": {part: _row(cells) for part, cells in parts.items()},
        **({"false_yes_objects": dict((+objects).most_common(10))} if objects else {}),
    }


def _row(cells: Cells) -> dict[str, Any]:
    shares = {kind: cells.share(kind) for kind in cells.groups}
    return {
        "accuracy": cells.accuracy,
        **{f"accuracy_{kind}": share for kind, share in shares.items()},
        "yes_ratio": cells.yes_ratio,
        "unknown": int(cells.unknown),
        "n": int(cells.n),
    }


def parts_of(spec: Closed, parts: Sequence[str]) -> list[str]:
    """The parts that are there, in their usual order, others after them."""
    present = list(dict.fromkeys(parts))
    return [part for part in spec.parts if part in present] + [
        part for part in present if part not in spec.parts
    ]


def _of_parts(
    spec: Closed, questions: Sequence[ClosedQuestion], subsets: Sequence[str]
) -> list[ClosedQuestion]:
    """The questions of the parts named."""
    if not subsets:
        return list(questions)
    present = dict.fromkeys(item.part for item in questions)
    names = [*spec.subsets, *present]
    wanted: set[str] = set()
    for name in subsets:
        if name not in names:
            raise LvlmAttnError(
                f"{spec.title} has no part {name!r}.{closest(name, names)} There are {', '.join(names[:24])}."
            )
        wanted |= set(spec.subsets.get(name, (name,)))
    kept = [item for item in questions if item.part in wanted]
    if not kept:
        raise LvlmAttnError(
            f"{spec.title}: your copy has no questions of {' and '.join(subsets)}; it has {', '.join(present)}."
        )
    return kept


def _first(questions: Sequence[ClosedQuestion], limit: int | None) -> tuple[ClosedQuestion, ...]:
    """Whole pictures, or sets of them, so that no group of questions is cut."""
    if limit is None:
        return tuple(questions)
    if limit < 1:
        raise LvlmAttnError(f"limit is {limit}; it must be at least 1.")
    seen: dict[str, dict[str, None]] = {}
    for item in questions:
        seen.setdefault(item.part, {}).setdefault(item.cluster or item.image)
    kept = {part: set(list(names)[:limit]) for part, names in seen.items()}
    return tuple(item for item in questions if (item.cluster or item.image) in kept[item.part])
