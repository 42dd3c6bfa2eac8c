"""Answer files of any tool, joined to the questions they answer.

Answers are joined by `sample_id`, by the id of the question, by picture and question, or by the picture alone where
each is asked about once; never by their order. What an answer tells of its picture and question must not contradict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.core.fields import (
    IDS,
    PLACES,
    QUESTIONS,
    Choice,
    Row,
    answer_text,
    choose,
    first_text,
    flatten,
    id_key,
    image_of,
)
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.pictures import image_key
from lvlm_attn.evals.core.records import latest_by_id, read_records

_BLANK = re.compile(r"\s+")


class Asked(Protocol):
    """What a question has to tell."""

    @property
    def sample_id(self) -> str: ...  # noqa: D102
    @property
    def question_id(self) -> str: ...  # noqa: D102
    @property
    def image(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class AnswerRow:
    """One answer as its file tells it.

    Attributes:
        where: how messages name it.
        text: the answer.
        row: all its fields by plain name.
    """

    where: str
    text: str
    row: Row

    @property
    def image(self) -> str | None:
        """Key of the picture it is about."""
        found = image_of(self.row)
        return None if found is None else image_key(found)


@dataclass(frozen=True)
class Answers:
    """The answers of one file.

    Attributes:
        path: the file.
        rows: its answers.
        failed: records without one because generating it failed.
        choice: which field was taken for the answers.
    """

    path: Path
    rows: tuple[AnswerRow, ...]
    failed: int
    choice: Choice


@dataclass(frozen=True)
class Joined:
    """Answers by the sample they answer.

    Attributes:
        texts: the answers by `sample_id`.
        failed: answers left out because generating them failed.
        unasked: answers left out because nothing asks for them.
        by: what joined them.
    """

    texts: Mapping[str, str]
    failed: int
    unasked: int
    by: str


def read_answers(path: str | Path, answer_field: str | None = None, captions: bool = False) -> Answers:
    """Reads a file of answers.

    Args:
        path: the file.
        answer_field: the field with the model's answers, where a file has two that could be.
        captions: whether descriptions are wanted, rather than short answers.

    Raises:
        LvlmAttnError: it cannot be read, or has no field with answers or two that could be.
    """
    path = Path(path)
    what = f"answer file {path}"
    records = [
        (record, flatten(record.value)) for record in latest_by_id(read_records(path, "answer file").records)
    ]
    spoken = [(record, row) for record, row in records if not row.get("error")]
    failed = len(records) - len(spoken)
    if not spoken:
        return Answers(path, (), failed, Choice("raw_text"))
    choice = choose([row for _, row in spoken], what, answer_field, captions)
    rows = []
    for record, row in spoken:
        text = answer_text(row, choice, captions)
        if text is None:
            found = f"is {shown(row[choice.field])}" if choice.field in row else "is missing"
            raise LvlmAttnError(
                f"{what}, {record.where}: no answer text ({choice.field!r} {found}); each entry needs it as text."
            )
        rows.append(AnswerRow(record.where, text, row))
    return Answers(path, tuple(rows), failed, choice)


Pairs = dict[str, AnswerRow]


def join(answers: Answers, asked: Sequence[Asked], partial: bool = False) -> Joined:
    """Pairs answers with questions.

    Args:
        answers: the answers.
        asked: the questions.
        partial: whether questions may lack an answer.

    Raises:
        LvlmAttnError: nothing tells which answer is whose, two answers to one question, answers to other questions,
            or missing answers.
    """
    tried = ((name, way(answers, asked)) for name, way in _WAYS.items())
    by, pairs = next(((name, found) for name, found in tried if found is not None), ("", None))
    if pairs is None:
        raise LvlmAttnError(
            f"answer file {answers.path}: nothing in it tells which of the {len(asked)} questions an answer is for; "
            "it needs their ids, or pictures and questions, as in the file they were read from."
        )
    _refuse_contradictions(pairs, asked, answers.path)
    missing = [item.sample_id for item in asked if item.sample_id not in pairs]
    if missing and not ((partial or answers.failed) and pairs):
        raise LvlmAttnError(
            f"{len(missing)} of {len(asked)} questions have no answer in {answers.path} (first: "
            f"{one_line(missing[0])}); name the data the answers were made from, or pass --partial to score the rest."
        )
    texts = {item.sample_id: pairs[item.sample_id].text for item in asked if item.sample_id in pairs}
    return Joined(texts, answers.failed, len(answers.rows) - len(pairs), by)


def _by_sample(answers: Answers, asked: Sequence[Asked]) -> Pairs | None:
    names = [item.row.get("sample_id") for item in answers.rows]
    if not names or not all(isinstance(name, str) for name in names):
        return None
    known = {item.sample_id for item in asked}
    return {str(name): item for name, item in zip(names, answers.rows) if name in known} or None


def _by_id(answers: Answers, asked: Sequence[Asked]) -> Pairs | None:
    """By the first kind of id that all answers have and that only knows questions, each at most once."""
    ids = {str(id_key(item.question_id)): item.sample_id for item in asked}
    if len(ids) < len(asked):
        return None
    for field in (*IDS, *PLACES):
        keys = [id_key(item.row.get(field)) for item in answers.rows]
        known = sum(key in ids for key in keys)
        if not keys or None in keys or 2 * known <= min(len(keys), len(ids)):
            continue
        if field in PLACES and not (set(keys) <= set(ids) or set(ids) <= set(keys)):
            continue  # an index that counts from elsewhere
        _refuse_repeated(keys, answers.path)
        return {ids[key]: item for key, item in zip(keys, answers.rows) if key in ids}
    return None


def _by_picture(answers: Answers, asked: Sequence[Asked]) -> Pairs | None:
    """By picture, and where several questions are asked about it by the question inside what was sent."""
    about: dict[str, list[Asked]] = {}
    for question in asked:
        for key in {image_key(question.image), str(id_key(question.question_id))}:
            about.setdefault(key, []).append(question)
    told = [(next((key for key in _places(item) if key in about), ""), item) for item in answers.rows]
    pairs: Pairs = {}
    known = 0
    for place, item in told:
        candidates = about.get(place, [])
        known += bool(candidates)
        sent = plain(first_text(item.row, QUESTIONS, but=answers.choice.field) or "")
        if len(candidates) > 1:
            candidates = _likeliest(candidates, _picture(item.row), sent)
        for question in candidates:
            if question.sample_id in pairs:
                raise LvlmAttnError(
                    f"answer file {answers.path} answers {one_line(question.text, 60)!r} about picture "
                    f"{one_line(question.image)} twice; keep one answer per question."
                )
            pairs[question.sample_id] = item
    return pairs if 2 * known > min(len(told), len(asked)) and pairs else None


def _likeliest(candidates: Sequence[Asked], image: str, sent: str) -> list[Asked]:
    """The question that was sent, about the picture whose folders are the same as well where that tells."""
    same = [one for one in candidates if _stem(image).endswith(_stem(one.image))] or candidates
    found = [one for one in same if core(one.text) in sent]
    return sorted(found, key=lambda one: -len(core(one.text)))[:1]


def _stem(image: str) -> str:
    path = PurePosixPath(image.replace("\\", "/"))
    return path.with_suffix("").as_posix() if path.name else ""


def _places(item: AnswerRow) -> Iterator[str]:
    """Keys of the picture an answer may be about; ids are often paths of pictures."""
    if item.image is not None:
        yield item.image
    for name in IDS:
        if (key := id_key(item.row.get(name))) is not None:
            yield from (key, image_key(key))


def _picture(row: Row) -> str:
    return image_of(row) or next((str(row[name]) for name in IDS if row.get(name) is not None), "")


_WAYS: dict[str, Callable[[Answers, Sequence[Asked]], Pairs | None]] = {
    "sample_id": _by_sample,
    "id": _by_id,
    "picture and question": _by_picture,
}


def plain(text: str) -> str:
    """A text for comparison: lower case, single blanks."""
    return _BLANK.sub(" ", text).strip().lower()


def core(text: str) -> str:
    """A question up to its last question mark, without the instruction on how to answer.

    Example:
        >>> core("Is it red?  Please answer yes or no.")
        'is it red?'
    """
    told = plain(text)
    return told[: told.rindex("?") + 1] if "?" in told else told


def _refuse_repeated(keys: Sequence[str | None], path: Path) -> None:
    name, count = Counter(keys).most_common(1)[0]
    if count > 1:
        raise LvlmAttnError(
            f"answer file {path} gives question id {one_line(str(name))} {count} times; keep one answer per question."
        )


def _refuse_contradictions(pairs: Pairs, asked: Sequence[Asked], path: Path) -> None:
    """Refuses answers whose own picture or question is another; a few that are worded otherwise pass."""
    wrong = []
    told = 0
    for question in asked:
        item = pairs.get(question.sample_id)
        if item is None:
            continue
        sent = first_text(item.row, ("question", "prompt", "query"))
        told += sent is not None or item.image is not None
        other_image = item.image is not None and item.image != image_key(question.image)
        if other_image or (sent is not None and core(question.text) not in plain(sent)):
            wrong.append((question, item, sent))
    if len(wrong) > told // 20:
        question, item, sent = wrong[0]
        raise LvlmAttnError(
            f"answer file {path}, {item.where} answers {one_line(str(sent or item.image), 60)!r} where question "
            f"{one_line(question.sample_id)} asks {one_line(question.text, 60)!r} ({len(wrong)} of {told} differ); "
            "name the data the answers were made for."
        )
