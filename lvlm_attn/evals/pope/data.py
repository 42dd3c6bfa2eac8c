"""POPE question files in every form that circulates.

At least four different files are called POPE-COCO, so what is loaded is described by hash, row count and the
number of "imange" typos, and that description goes into every result. Read here: RUCAIBox, DAMO VCD and OPERA
(JSON lines, Unix or Windows line ends), RUCAIBox's A-OKVQA and GQA files (one indented array), objects written
over several lines, PAI's chat records (``text`` and ``label`` are lists), LLaVA's file with a ``category`` and no
labels, the hub's rows (``question``, ``answer``, ``image_source``, ``category``) as JSON, parquet or a `datasets`
folder, VLMEvalKit's table (one row for several categories), and RePOPE.

Source: Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023 (POPE).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.core.fields import (
    IDS,
    PLACES,
    QUESTIONS,
    Label,
    Row,
    expand_chat,
    first_id,
    first_text,
    flatten,
    image_of,
    label_of,
)
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.pictures import image_key
from lvlm_attn.evals.core.records import Record, read_records

CATEGORIES = ("random", "popular", "adversarial")
DATASETS = ("aokvqa", "gqa", "coco")
_LABELS = ("label", "gt_label", "gt", "ground_truth", "target", "answer")
_OBJECT = re.compile(r"is there\s+(?:(?:an?|the|any)\s+)?(.{1,80}?)\s+in the iman?ge", re.IGNORECASE)
_NAMED_SPLIT = re.compile(r"(?<![a-z])(random|popular|adversarial|rand|pop|adv)(?![a-z])")
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
        source: name of the file without ending.
    """

    sample_id: str
    question_id: int | str
    image: str
    text: str
    label: Label | None
    category: str
    source: str = ""

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


@lru_cache(maxsize=1 << 16)
def question_key(text: str) -> str:
    """What is asked, apart from the words around it: a prompt as sent may hold examples, a system message and a suffix.

    Example:
        >>> question_key("USER: Is there an oven in the imange? ASSISTANT:")
        'is there oven'
    """
    found = _OBJECT.findall(text)
    return f"is there {found[-1].lower()}" if found else normalised(text)


def split_of(name: str) -> str | None:
    """The split that a file's or category's name tells, or None where it tells none or several.

    Example:
        >>> split_of("llava-7b-coco-random-greedy"), split_of("randomised")
        ('random', None)
    """
    found = {word[:3] for word in _NAMED_SPLIT.findall(name.lower())}
    return next((split for split in CATEGORIES if {split[:3]} == found), None)


def dataset_of(name: str) -> str | None:
    """``coco``, ``aokvqa`` or ``gqa`` where a name tells it."""
    plain = name.lower().replace("-", "").replace("_", "")
    return next((dataset for dataset in DATASETS if dataset in plain), None)


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
    held = [(stem, block, {item.category for item in block}) for stem, block in blocks]
    times = Counter(name for _, _, names in held for name in names)
    questions = [
        Question(
            f"{name}:{item.question_id}",
            item.question_id,
            item.image,
            item.text,
            item.label,
            name,
            item.source,
        )
        for stem, block, names in held
        for item in block
        for apart in [stem if len(names) == 1 else f"{stem}-{item.category}"]
        for name in [apart if times[item.category] > 1 else item.category]
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
    is_chat = False
    for record in file.records:
        rows = _rows(record, path)
        is_chat |= len(rows) > 1
        for row in rows:
            questions.extend(_questions(row, f"question file {path}, {record.where}", category, path.stem))
    typos = sum("imange" in question.text for question in questions)
    info = PopeFile(
        path=path.name,
        sha256=file.sha256,
        layout=file.layout + (", chat" if is_chat else ""),
        rows=len(questions),
        typos=typos,
        yes=sum(question.label == "yes" for question in questions),
        images=len({question.image for question in questions}),
        warnings=tuple(_warnings(path, questions)),
    )
    if fix_typo:
        questions = [replace(item, text=item.text.replace("imange", "image")) for item in questions]
    return questions, info


def _rows(record: Record, path: Path) -> list[Row]:
    try:
        return expand_chat(flatten(record.value), record.place)
    except LvlmAttnError as error:
        raise LvlmAttnError(f"question file {path}, {record.where}: {error}") from None


def _questions(row: Row, where: str, category: str, source: str) -> Iterable[Question]:
    """The question of one row; several where it counts for several categories."""
    text = first_text(row, QUESTIONS)
    image = image_of(row) or first_id(row, ("index",))
    for name, found in (("image", image), ("text", text)):
        if found is None and name in row:
            raise LvlmAttnError(f"{where}: image and text must be non-empty strings; correct the entry.")
        if found is None:
            has = one_line(", ".join(row) or "nothing")
            raise LvlmAttnError(
                f"{where}: no {name!r} in this entry (it has {has}); "
                "a POPE question needs question_id, image, text and label."
            )
    if text is None or image is None:
        return
    number = first_id(row, IDS if any(name in row for name in IDS) else PLACES)
    if number is None:
        raise LvlmAttnError(
            f"{where}: question_id is {shown(row.get('question_id'))}; give each question a number."
        )
    label = None
    for name in _LABELS:
        if row.get(name) is not None:
            try:
                label = label_of(row[name])
            except ValueError as error:
                raise LvlmAttnError(f"{where}: {name} is {error}; it must be yes or no.") from None
            break
    own = row.get("category")
    if own is None and split_of(str(row.get("split"))):
        own = row["split"]  # of a `DatasetDict`
    named = own.split(",") if isinstance(own, str) and own.strip() else [category]
    for item in named:
        plain = item.strip()
        split = plain.lower() if plain.lower() in CATEGORIES else plain
        yield Question("", int(number) if number.isdecimal() else number, image, text, label, split, source)


def category_of(path: Path) -> str:
    """Returns the split named in a file name, else the name without its ending."""
    name = path.stem.lower()
    named = split_of(name) or next((category for category in CATEGORIES if category in name), None)
    return named or path.stem


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
        (image_key(question.image), question_key(question.text)): question.label
        for (_, block), bare in zip(blocks, is_bare, strict=True)
        if not bare
        for question in block
    }
    return [
        (
            stem,
            [
                replace(item, label=labels.get((image_key(item.image), question_key(item.text))))
                for item in block
            ],
        )
        for (stem, block), bare in zip(blocks, is_bare, strict=True)
        if bare
    ]
