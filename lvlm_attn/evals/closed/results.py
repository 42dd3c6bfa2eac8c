"""Answers of other tools to closed questions, scored like our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.core.fields import Choice
from lvlm_attn.evals.core.joining import AnswerRow, Answers, join, read_answers
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.records import decode

_COLUMNS = 4


@dataclass(frozen=True)
class Scored:
    """Result lines made from an answer file.

    Attributes:
        lines: one per answered question, as a run would have written it.
        failed: answers left out because generating them failed.
        unasked: answers left out because nothing asks for them.
        notes: what a user should know about how the file was read.
    """

    lines: tuple[Mapping[str, Any], ...]
    failed: int
    unasked: int
    notes: tuple[str, ...]


def lines_of(
    benchmark: ClosedBenchmark,
    path: str | Path,
    partial: bool = False,
    answer_field: str | None = None,
) -> Scored:
    """Reads an answer file as result lines.

    Args:
        benchmark: the questions.
        path: a file in any form that :mod:`lvlm_attn.evals.core.fields` lists, or a folder of MME's ``TASK.txt``.
        partial: score the answered questions only; otherwise a missing answer is an error.
        answer_field: the field with the model's answers, where a file has two that could be.

    Raises:
        LvlmAttnError: unreadable, answers missing, or answers to other questions.
    """
    path = Path(path)
    answers = mme_results(path) if _is_mme(path) else read_answers(path, answer_field)
    joined = join(answers, benchmark.questions, partial)
    fields = benchmark.fields()
    lines = tuple(
        {
            "sample_id": item.sample_id,
            "image": item.image,
            **fields[item.sample_id],
            "question": item.text,
            "raw_text": joined.texts[item.sample_id],
        }
        for item in benchmark.questions
        if item.sample_id in joined.texts
    )
    return Scored(lines, joined.failed, joined.unasked, (answers.choice.sentence(path.name),))


def _is_mme(path: Path) -> bool:
    return any(path.glob("*.txt")) if path.is_dir() else path.suffix == ".txt"


def mme_results(path: Path) -> Answers:
    """Reads what MME's evaluation tool reads: per sub-task lines of picture, question, right answer and answer.

    Raises:
        LvlmAttnError: a line has another form.
    """
    rows: list[AnswerRow] = []
    for file in sorted(path.glob("*.txt")) if path.is_dir() else [path]:
        for number, line in enumerate(_lines(file), 1):
            cells = line.split("\t", _COLUMNS - 1)
            if len(cells) != _COLUMNS:
                raise LvlmAttnError(
                    f"answer file {file}, line {number}: expected picture, question, right answer and answer with tabs "
                    f"between them, found {len(cells)} cells."
                )
            told = {"image": f"{file.stem}/{cells[0]}", "question": cells[1], "answer": cells[3]}
            rows.append(AnswerRow(f"{file.name}, line {number}", cells[3], told))
    return Answers(path, tuple(rows), 0, Choice("the fourth column"))


def _lines(file: Path) -> Sequence[str]:
    text = decode(read_bytes(file, "answer file"), file, "answer file")
    return [line for line in text.splitlines() if line.strip()]
