"""Answer files for POPE, in the wild and our own, matched to their questions.

Read here: ``{question, answer}`` (RUCAIBox), ``{question_id, text}`` with or without ``prompt`` (LLaVA, VCD),
and this project's ``samples.jsonl``. Answers are matched by question id, else by picture and question, else
by order. A file made for other questions is refused instead of scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.jsonio import Record, read_records
from lvlm_attn.evals.core.run_folder import latest_by_id
from lvlm_attn.evals.pope.data import Question, normalised

_TEXT_KEYS = ("raw_text", "answer", "text", "response", "output", "prediction")
_QUESTION_KEYS = ("question", "prompt")


@dataclass(frozen=True)
class Answered:
    """A question with the raw text a model gave for it."""

    question: Question
    text: str


@dataclass(frozen=True)
class _Row:
    line: int
    text: str
    question_id: str | None
    sample_id: str | None
    image: str | None
    question: str | None


def match_answers(
    paths: Iterable[str | Path], questions: Sequence[Question], partial: bool = False
) -> tuple[list[Answered], int]:
    """Reads answer files and pairs each answer with its question.

    One file may answer all questions, or several files one category each, in the order the categories were
    loaded.

    Args:
        paths: the answer files.
        questions: the questions they answer.
        partial: score the answered questions only; otherwise a missing answer is an error.

    Returns:
        The pairs in question order, and how many answers were left out because generating them failed.

    Raises:
        LvlmAttnError: unreadable file, answers missing, or answers that belong to other questions.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise LvlmAttnError("no answer file was given; name at least one.")
    categories = list(dict.fromkeys(question.category for question in questions))
    answered: list[Answered] = []
    failed = 0
    loaded = [_load(path) for path in files]
    if all(row.sample_id is not None for rows, _ in loaded for row in rows):
        texts: dict[str, str] = {row.sample_id or "": row.text for rows, _ in loaded for row in rows}
        failed = sum(count for _, count in loaded)
        found = [(question, texts.pop(question.sample_id, None)) for question in questions]
        if texts and len(texts) > len(questions) // 2:
            raise LvlmAttnError(
                f"{files[0]} answers other questions ({next(iter(texts))} is not in the question file); "
                "name the question files the run was made with."
            )
        answered = _require(found, files[0], partial or failed > 0)
    elif len(files) == 1:
        answered = _match(loaded[0][0], questions, files[0], partial)
    elif len(files) == len(categories):
        for path, (rows, _), category in zip(files, loaded, categories, strict=True):
            own = [question for question in questions if question.category == category]
            answered.extend(_match(rows, own, path, partial))
    else:
        raise LvlmAttnError(
            f"{len(files)} answer files for {len(categories)} question categories; "
            "name one answer file for each question file, in the same order, or a single one."
        )
    return answered, failed


def _load(path: Path) -> tuple[list[_Row], int]:
    file = read_records(path, "answer file")
    records = latest_by_id(file.records)
    rows = [_row(record, path) for record in records if not record.value.get("error")]
    return rows, len(records) - len(rows)


def _row(record: Record, path: Path) -> _Row:
    value = record.value
    text = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), str)), None)
    if text is None:
        raise LvlmAttnError(
            f"answer file {path}, line {record.line}: no answer text (looked for {', '.join(_TEXT_KEYS)}); "
            "each entry needs one of these."
        )

    def optional(key: str) -> str | None:
        found: Any = value.get(key)
        return None if found is None else str(found)

    return _Row(
        line=record.line,
        text=text,
        question_id=optional("question_id"),
        sample_id=optional("sample_id"),
        image=optional("image"),
        question=next((str(value[key]) for key in _QUESTION_KEYS if value.get(key)), None),
    )


def _match(rows: list[_Row], questions: Sequence[Question], path: Path, partial: bool) -> list[Answered]:
    ids = [row.question_id for row in rows]
    asked = {str(question.question_id) for question in questions}
    pairs: list[tuple[Question, _Row | None]]
    if None not in ids and len(set(ids)) == len(ids) and len(asked) == len(questions):
        by_id = {row.question_id: row for row in rows}
        pairs = [(question, by_id.get(str(question.question_id))) for question in questions]
    elif all(row.image and row.question for row in rows):
        by_text = {(row.image, normalised(row.question or "")): row for row in rows}
        pairs = [(item, by_text.get((item.image, normalised(item.text)))) for item in questions]
    elif len(rows) == len(questions):
        pairs = list(zip(questions, rows, strict=True))
    else:
        raise LvlmAttnError(
            f"answer file {path} has {len(rows)} answers for {len(questions)} questions and no ids; "
            "score it with the question file it was made from."
        )
    _check_same_questions(pairs, path)
    return _require([(question, row.text if row else None) for question, row in pairs], path, partial)


def _check_same_questions(pairs: Sequence[tuple[Question, _Row | None]], path: Path) -> None:
    told = [(item, row) for item, row in pairs if row is not None and row.question]
    wrong = [
        (item, row) for item, row in told if normalised(item.text) not in _last_question(row.question or "")
    ]
    if len(wrong) > len(told) // 20:
        item, row = wrong[0]
        raise LvlmAttnError(
            f"answer file {path}, line {row.line} answers {str(row.question).strip()[:60]!r} where question "
            f"{item.question_id} asks {item.text[:60]!r} ({len(wrong)} of {len(told)} differ); "
            "name the question file the answers were made for."
        )


def _last_question(text: str) -> str:
    """The prompt as sent may hold a system message before the question and a suffix after it."""
    return " ".join(normalised(part) for part in text.split("?"))


def _require(pairs: Sequence[tuple[Question, str | None]], path: Path, partial: bool) -> list[Answered]:
    answered = [Answered(question, text) for question, text in pairs if text is not None]
    missing = len(pairs) - len(answered)
    if missing and not (partial and answered):
        first = next(question.sample_id for question, text in pairs if text is None)
        raise LvlmAttnError(
            f"{missing} of {len(pairs)} questions have no answer in {path} (first: {first}); "
            "score with the question file the answers were made from, or pass --partial to score the rest."
        )
    return answered
