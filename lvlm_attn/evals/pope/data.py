"""POPE question files in every form that circulates.

At least four different files are called POPE-COCO, so what is loaded is described by hash, row count and the
number of "imange" typos, and that description goes into every result. Read here: RUCAIBox, DAMO VCD and OPERA
(JSON lines, Unix or Windows line ends), RUCAIBox's A-OKVQA and GQA files (one indented array), objects
written over several lines, PAI's chat records (``text`` and ``label`` are lists), and LLaVA's file with a
``category`` and no labels.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023 (POPE).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.jsonio import Record, read_records

CATEGORIES = ("random", "popular", "adversarial")
_OBJECT = re.compile(r"is there (?:an?|the|any)\s+(.+?)\s+in the iman?ge", re.IGNORECASE)
_OLD_RANDOM_ROWS = 2910


@dataclass(frozen=True)
class Question:
    """One yes/no question.

    Attributes:
        sample_id: ``"category:question_id"``, unique over everything loaded together.
        question_id: the id in the file (chat records: ``chat_id * turns + turn + 1``).
        image: file name of the image.
        text: the question as it is sent to the model, before any suffix.
        label: the right answer, or None where the file has none.
        category: ``random``, ``popular``, ``adversarial``, or the file's name where it tells none.
    """

    sample_id: str
    question_id: int | str
    image: str
    text: str
    label: Literal["yes", "no"] | None
    category: str

    @property
    def object(self) -> str | None:
        """The object asked for, or None where the question is worded otherwise."""
        found = _OBJECT.search(self.text)
        return found.group(1).lower() if found else None


@dataclass(frozen=True)
class PopeFile:
    """What was found in one file.

    Attributes:
        path: where it was read.
        sha256: hash of its bytes.
        layout: ``"json lines"``, ``"array"`` or ``"concatenated"``, with ``", chat"`` for PAI's records.
        rows: number of questions.
        typos: how many questions hold "imange" in the file, mended or not.
        yes: how many labels are yes.
        images: number of different images.
        warnings: sentences a user should read before trusting a comparison.
    """

    path: str
    sha256: str
    layout: str
    rows: int
    typos: int
    yes: int
    images: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PopeData:
    """Questions of one or several files, in file order, and what the files were."""

    questions: tuple[Question, ...]
    files: tuple[PopeFile, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in the order they first appear."""
        return tuple(dict.fromkeys(question.category for question in self.questions))


def normalised(text: str) -> str:
    """Returns the question alone, without typo, case, article and whatever follows the question mark.

    Two files that ask for the same object in the same picture give the same string.
    """
    text = text.split("?")[0].lower().replace("imange", "image")
    return re.sub(r"\s+", " ", re.sub(r"\ban?\b", " ", text)).strip()


def load_questions(paths: str | Path | Iterable[str | Path], fix_typo: bool = False) -> PopeData:
    """Loads one or several POPE question files.

    A file without any label (LLaVA's) takes its labels from the labelled files loaded with it, by picture and
    question; those files then only serve as the source of labels.

    Args:
        paths: the files.
        fix_typo: put "image" for "imange". Off by default, to ask what published runs asked.

    Returns:
        The questions with the description of each file.

    Raises:
        LvlmAttnError: a file is missing, unreadable or no question file; the message names file, line and
            remedy.

    Example:
        >>> data = load_questions("coco_pope_random.json")  # doctest: +SKIP
        >>> data.files[0].rows, data.files[0].typos  # doctest: +SKIP
        (3000, 0)
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    if not listed:
        raise LvlmAttnError("no question file was given; name at least one POPE file.")
    if len({Path(path).resolve() for path in listed}) < len(listed):
        raise LvlmAttnError("the same question file is named twice; name each file once.")
    loaded = [_load_file(Path(path), fix_typo) for path in listed]
    blocks = _label_from_others([(Path(info.path).stem, questions) for questions, info in loaded])
    names = [questions[0].category for _, questions in blocks]
    questions = [
        replace(item, category=category, sample_id=f"{category}:{item.question_id}")
        for stem, block in blocks
        for item in block
        for category in [stem if names.count(item.category) > 1 else item.category]
    ]
    repeated = [
        name for name, count in Counter(question.sample_id for question in questions).items() if count > 1
    ]
    if repeated:
        raise LvlmAttnError(
            f"{len(repeated)} question ids occur more than once (first: {repeated[0]}); "
            "give each question of a category its own question_id."
        )
    return PopeData(tuple(questions), tuple(info for _, info in loaded))


def _load_file(path: Path, fix_typo: bool) -> tuple[list[Question], PopeFile]:
    file = read_records(path, "question file")
    category = category_of(path)
    questions: list[Question] = []
    for record in file.records:
        questions.extend(_questions(record, path, category))
    typos = sum("imange" in question.text for question in questions)
    layout = file.layout + (", chat" if isinstance(file.records[0].value.get("text"), list) else "")
    info = PopeFile(
        path=path.name,
        sha256=file.sha256,
        layout=layout,
        rows=len(questions),
        typos=typos,
        yes=sum(question.label == "yes" for question in questions),
        images=len({question.image for question in questions}),
        warnings=tuple(_warnings(path, questions)),
    )
    if fix_typo:
        questions = [replace(item, text=item.text.replace("imange", "image")) for item in questions]
    return questions, info


def _questions(record: Record, path: Path, category: str) -> list[Question]:
    row, where = record.value, f"question file {path}, line {record.line}"
    for key in ("image", "text"):
        if key not in row:
            raise LvlmAttnError(
                f"{where}: no {key!r} in this entry (it has {', '.join(row) or 'nothing'}); "
                "a POPE question needs question_id, image, text and label."
            )
    texts = row["text"]
    if not isinstance(texts, list):
        return [
            _question(row.get("question_id"), row["image"], texts, row.get("label"), row, where, category)
        ]
    labels = row.get("label")
    labels = [None] * len(texts) if labels is None else labels
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise LvlmAttnError(
            f"{where}: {len(texts)} questions need a list of {len(texts)} labels; mend the entry."
        )
    chat = row.get("chat_id", record.line - 1)
    if not isinstance(chat, int):
        raise LvlmAttnError(f"{where}: chat_id is {chat!r}, expected a whole number; mend the entry.")
    return [
        _question(chat * len(texts) + turn + 1, row["image"], text, label, row, where, category)
        for turn, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]


def _question(
    number: object, image: object, text: object, label: object, row: dict[str, Any], where: str, category: str
) -> Question:
    if not isinstance(number, int | str):
        raise LvlmAttnError(f"{where}: question_id is {number!r}; give each question a number.")
    if not isinstance(image, str) or not image or not isinstance(text, str) or not text:
        raise LvlmAttnError(f"{where}: image and text must be non-empty strings; mend the entry.")
    answer: Literal["yes", "no"] | None = None
    if label is not None:
        word = str(label).strip().lower()
        if word not in ("yes", "no"):
            raise LvlmAttnError(f"{where}: label is {label!r}; it must be yes or no.")
        answer = "yes" if word == "yes" else "no"
    own = row.get("category")
    return Question("", number, image, text, answer, str(own) if own else category)


def category_of(path: Path) -> str:
    """Returns the split named in a file name, else the name without its ending."""
    name = path.stem.lower()
    for category in CATEGORIES:
        if category in name:
            return category
    return path.stem


def _warnings(path: Path, questions: Sequence[Question]) -> Iterable[str]:
    if len(questions) == _OLD_RANDOM_ROWS:
        yield (
            f"{path.name} has 2910 rows: the older random split, "
            "which leaves out 90 no questions of the current one."
        )
    statements = sum("?" not in question.text for question in questions)
    if statements:
        yield f"{statements} of {len(questions)} rows of {path.name} are not questions; is this a POPE file?"
    missing = sum(question.label is None for question in questions)
    if 0 < missing < len(questions):
        yield f"{missing} of {len(questions)} rows of {path.name} have no label and cannot be scored."


def _label_from_others(blocks: list[tuple[str, list[Question]]]) -> list[tuple[str, list[Question]]]:
    is_bare = [all(question.label is None for question in block) for _, block in blocks]
    if not any(is_bare) or all(is_bare):
        return blocks
    labels = {
        (question.image, normalised(question.text)): question.label
        for (_, block), bare in zip(blocks, is_bare, strict=True)
        if not bare
        for question in block
    }
    return [
        (stem, [replace(item, label=labels.get((item.image, normalised(item.text)))) for item in block])
        for (stem, block), bare in zip(blocks, is_bare, strict=True)
        if bare
    ]
