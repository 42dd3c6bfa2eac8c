"""Answer files for POPE, in the wild and our own, matched to their questions.

Which field holds the answer is decided by :mod:`lvlm_attn.evals.core.fields`. Answers are matched by ``sample_id``,
by picture and question, by question id, by the question alone where no other picture is asked it, and by order only
where counts agree and nothing told contradicts. A file made for other questions is refused instead of scored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.core.fields import (
    IDS,
    PLACES,
    QUESTIONS,
    Choice,
    Row,
    answer_text,
    choose,
    expand_chat,
    first_id,
    first_text,
    flatten,
    image_of,
)
from lvlm_attn.evals.core.finished import question_files_of
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.pictures import image_key
from lvlm_attn.evals.core.records import latest_by_id, read_records
from lvlm_attn.evals.pope.data import CATEGORIES, Question, question_key


@dataclass(frozen=True)
class Answered:
    """A question with the raw text a model gave for it."""

    question: Question
    text: str


@dataclass(frozen=True)
class Given:
    """One answer as its file tells it; what the file does not tell is None.

    Attributes:
        where: how messages name the record.
        text: the answer.
        sample_id: this project's own name of the question.
        question_id: the question's id, as a key.
        place: an index or row number, as a key.
        image: key of the picture.
        question: the question or the whole prompt.
        categories: the splits the row counts for.
    """

    where: str
    text: str
    sample_id: str | None
    question_id: str | None
    place: str | None
    image: str | None
    question: str | None
    categories: frozenset[str]


@dataclass(frozen=True)
class AnswerFile:
    """All answers of one file.

    Attributes:
        path: the file.
        given: its answers.
        failed: records without an answer because generating it failed.
        choice: which field was taken for the answers.
    """

    path: Path
    given: tuple[Given, ...]
    failed: int
    choice: Choice


@dataclass(frozen=True)
class Matched:
    """Questions with their answers.

    Attributes:
        answered: the pairs in question order.
        failed: answers left out because generating them failed.
        unasked: answers left out because their questions are not asked.
        by: what matched them.
    """

    answered: list[Answered] = field(default_factory=list)
    failed: int = 0
    unasked: int = 0
    by: str = "question_id"


def load_answers(path: str | Path, answer_field: str | None = None) -> AnswerFile:
    """Reads one answer file.

    Args:
        path: the file.
        answer_field: the field with the model's answers.

    Raises:
        LvlmAttnError: unreadable, no field with answers or two that could be, or a record without one.
    """
    path = Path(path)
    file = read_records(path, "answer file")
    records = latest_by_id(file.records)
    rows: list[tuple[str, Row]] = []
    failed = 0
    for record in records:
        row = flatten(record.value)
        if row.get("error"):
            failed += 1
            continue
        try:
            rows += [(record.where, part) for part in expand_chat(row, record.place)]
        except LvlmAttnError as error:
            raise LvlmAttnError(f"answer file {path}, {record.where}: {error}") from None
    if not rows:
        return AnswerFile(path, (), failed, Choice("raw_text"))
    choice = choose([row for _, row in rows], f"answer file {path}", answer_field)
    return AnswerFile(path, tuple(_given(row, choice, where, path) for where, row in rows), failed, choice)


def _given(row: Row, choice: Choice, where: str, path: Path) -> Given:
    text = answer_text(row, choice)
    if text is None:
        found = f"is {shown(row[choice.field])}" if choice.field in row else "is missing"
        raise LvlmAttnError(
            f"answer file {path}, {where}: no answer text ({choice.field!r} {found}); each entry needs it as text."
        )
    sample_id = row.get("sample_id")
    category = row.get("category")
    named = category.lower().split(",") if isinstance(category, str) else []
    image = image_of(row)
    return Given(
        where=where,
        text=text,
        sample_id=sample_id if isinstance(sample_id, str) else None,
        question_id=first_id(row, IDS),
        place=first_id(row, PLACES),
        image=None if image is None else image_key(image),
        question=first_text(row, QUESTIONS, but=choice.field),
        categories=frozenset(name.strip() for name in named) & frozenset(CATEGORIES),
    )


Pairs = Sequence[tuple[Question, Given | None]]


def match(file: AnswerFile, questions: Sequence[Question], partial: bool = False) -> Matched:
    """Pairs one file's answers with questions.

    Raises:
        LvlmAttnError: answers missing, an id given twice, or answers that belong to other questions.
    """
    given = file.given
    if given and all(item.sample_id is not None for item in given):
        return _match_samples(file, questions, partial)
    _refuse_other_splits(file, questions)
    _refuse_repeated_ids(file, questions)
    by, pairs = _pair(file, questions)
    _refuse_other_questions(pairs, file.path)
    _refuse_two_answers(pairs, file)
    used = {id(item) for _, item in pairs if item is not None}
    texts = [(question, item.text if item else None) for question, item in pairs]
    answered = _require(texts, file.path, partial or file.failed > 0)
    return Matched(answered, file.failed, sum(id(item) not in used for item in given), by)


def _pair(file: AnswerFile, questions: Sequence[Question]) -> tuple[str, Pairs]:
    for name, way in WAYS.items():
        pairs = way(file.given, questions)
        if pairs is not None:
            return name, pairs
    splits = {question.category for question in questions}
    remedy = "score it with the question file it was made from"
    if len(splits) > 1:
        remedy = f"put the split ({', '.join(map(one_line, sorted(splits)))}) into the file's name, or {remedy} alone"
    raise LvlmAttnError(
        f"answer file {file.path} has {len(file.given)} answers for {len(questions)} questions and no ids, "
        f"pictures or questions that tell which is which; {remedy}."
    )


def _match_samples(file: AnswerFile, questions: Sequence[Question], partial: bool) -> Matched:
    texts = {item.sample_id: item.text for item in file.given}
    found = [(question, texts.pop(question.sample_id, None)) for question in questions]
    if all(text is None for _, text in found) and (renamed := _match_renamed(file, questions, partial)):
        return renamed
    if texts and len(texts) > len(questions) // 2:
        made = ", ".join(map(one_line, question_files_of(file.path)))
        asked = ", ".join(one_line(name) for name in dict.fromkeys(item.source for item in questions) if name)
        told = (
            f": the run was made with {made}, and these questions are of {asked or 'another file'}"
            if made
            else ""
        )
        raise LvlmAttnError(
            f"{file.path} answers other questions{told} ({one_line(str(next(iter(texts))))} is not among them); "
            "name the question files the run was made with."
        )
    answered = _require(found, file.path, partial or file.failed > 0)
    return Matched(answered, file.failed, len(texts), "sample_id")


def _match_renamed(file: AnswerFile, questions: Sequence[Question], partial: bool) -> Matched | None:
    """Ids begin with the question file's name: under another name the same pictures and questions tell the pairs."""
    pairs = _by_picture(file.given, questions)
    if pairs is None or {id(item) for _, item in pairs if item is not None} != {
        id(item) for item in file.given
    }:
        return None
    _refuse_other_splits(file, questions)
    _refuse_two_answers(pairs, file)
    texts = [(question, item.text if item else None) for question, item in pairs]
    return Matched(
        _require(texts, file.path, partial or file.failed > 0), file.failed, 0, "picture and question"
    )


def _by_picture(given: Sequence[Given], questions: Sequence[Question]) -> Pairs | None:
    """By picture and question; an answer given once serves every split that asks it."""
    if not all(item.image and item.question for item in given):
        return None
    told: dict[tuple[str, str], list[Given]] = {}
    for item in given:
        told.setdefault((item.image or "", question_key(item.question or "")), []).append(item)
    pairs: list[tuple[Question, Given | None]] = []
    taken: Counter[tuple[str, str]] = Counter()
    for question in questions:
        key = image_key(question.image), question_key(question.text)
        found = told.get(key, [])
        own = [item for item in found if question.category in item.categories]
        pairs.append((question, own[0] if own else found[min(taken[key], len(found) - 1)] if found else None))
        taken[key] += 1
    return pairs if 2 * sum(item is not None for _, item in pairs) > min(len(given), len(questions)) else None


def _by_id(given: Sequence[Given], questions: Sequence[Question]) -> Pairs | None:
    """By split and id where both tell the split, else by id alone where no two splits share one."""
    if any(item.question_id is None for item in given):
        return None
    if all(item.categories for item in given) and all(
        question.category in CATEGORIES for question in questions
    ):
        split = {(name, item.question_id): item for item in given for name in item.categories}
        return [
            (question, split.get((question.category, str(question.question_id)))) for question in questions
        ]
    if len({question.question_id for question in questions}) < len(questions):
        return None
    plain = {item.question_id: item for item in given}
    return [(question, plain.get(str(question.question_id))) for question in questions]


def _by_place(given: Sequence[Given], questions: Sequence[Question]) -> Pairs | None:
    """By index, where the indices are exactly the ids asked; elsewhere they may count from 0."""
    by_place = {item.place: item for item in given}
    asked = {str(question.question_id) for question in questions}
    if len(by_place) < len(given) or set(by_place) != asked or len(asked) < len(questions):
        return None
    return [(question, by_place[str(question.question_id)]) for question in questions]


def _by_order(given: Sequence[Given], questions: Sequence[Question]) -> Pairs | None:
    """By order, where counts agree and what is told is what is asked; several splits must tell their questions."""
    several = len({question.category for question in questions}) > 1
    if len(given) != len(questions) or (several and any(item.question is None for item in given)):
        return None
    pairs = list(zip(questions, given, strict=True))
    same = (
        item.question_id in (None, str(question.question_id)) and _asks_same(question, item)
        for question, item in pairs
    )
    return pairs if all(same) else None


def _by_question(given: Sequence[Given], questions: Sequence[Question]) -> Pairs | None:
    """By the question alone, where each is asked and answered about one picture only."""
    by_text = {question_key(item.question or ""): item for item in given if item.question}
    asked = {question_key(question.text) for question in questions}
    if len(by_text) < len(given) or len(asked) < len(questions) or not asked & set(by_text):
        return None
    return [(question, by_text.get(question_key(question.text))) for question in questions]


WAYS: dict[str, Callable[[Sequence[Given], Sequence[Question]], Pairs | None]] = {
    "picture and question": _by_picture,
    "question_id": _by_id,
    "index": _by_place,
    "question": _by_question,
    "order": _by_order,
}
"""Tried in this order; the first that applies decides, and what it pairs is then checked."""


def _refuse_repeated_ids(file: AnswerFile, questions: Sequence[Question]) -> None:
    """An id may come once for each split that has it."""
    times = Counter(
        (item.question_id, item.categories) for item in file.given if item.question_id is not None
    )
    asked = Counter(str(question.question_id) for question in questions)
    for (name, categories), count in times.items():
        if count > max(1, 1 if categories else asked[name or ""]):
            twice = "twice" if count == 2 else f"{count} times"
            raise LvlmAttnError(
                f"answer file {file.path} gives question id {one_line(name or '')} {twice}; "
                "keep one answer per question."
            )


def _refuse_two_answers(pairs: Pairs, file: AnswerFile) -> None:
    """Two different answers to one question of one picture, where only one is asked for."""
    used = {id(item) for _, item in pairs if item is not None}
    answers: dict[tuple[str, str], set[str]] = {}
    for item in file.given:
        if item.image and item.question and (id(item) in used or not item.categories):
            answers.setdefault((item.image, question_key(item.question)), set()).add(item.text)
    times = Counter((image_key(question.image), question_key(question.text)) for question, _ in pairs)
    for (image, asked), texts in answers.items():
        if len(texts) > max(1, times[image, asked]) and times[image, asked]:
            raise LvlmAttnError(
                f"answer file {file.path} answers {one_line(asked)!r} about picture {one_line(image)} "
                "in different ways; keep one answer per question, or give each answer its category."
            )


def _refuse_other_splits(file: AnswerFile, questions: Sequence[Question]) -> None:
    asked = {question.category for question in questions} & set(CATEGORIES)
    told: frozenset[str] = frozenset().union(*(item.categories for item in file.given))
    if asked and told and not asked & told:
        raise LvlmAttnError(
            f"answer file {file.path} answers the split {' and '.join(sorted(told))}, the questions are "
            f"{' and '.join(sorted(asked))}; name the question file the answers were made for."
        )


def _refuse_other_questions(pairs: Pairs, path: Path) -> None:
    told = [(item, row) for item, row in pairs if row is not None and (row.question or row.image)]
    wrong = [(item, row) for item, row in told if not _asks_same(item, row)]
    if len(wrong) > len(told) // 20:
        item, row = wrong[0]
        raise LvlmAttnError(
            f"answer file {path}, {row.where} answers {one_line(str(row.question or row.image), 60)!r} where question "
            f"{item.question_id} asks {one_line(item.text, 60)!r} ({len(wrong)} of {len(told)} differ); "
            "name the question file the answers were made for (RePOPE's labels go to --relabel)."
        )


def _asks_same(question: Question, row: Given) -> bool:
    if row.image is not None and row.image != image_key(question.image):
        return False
    if row.question is None or question_key(row.question) == question_key(question.text):
        return True
    return question_key(question.text) in {question_key(part) for part in row.question.split("?")}


def _require(pairs: Sequence[tuple[Question, str | None]], path: Path, partial: bool) -> list[Answered]:
    answered = [Answered(question, text) for question, text in pairs if text is not None]
    missing = len(pairs) - len(answered)
    if missing and not (partial and answered):
        first = next(question.sample_id for question, text in pairs if text is None)
        raise LvlmAttnError(
            f"{missing} of {len(pairs)} questions have no answer in {path} (first: {one_line(first)}); "
            "score with the question file the answers were made from, or pass --partial to score the rest."
        )
    return answered
