"""Several answer files: which of them are one run over several splits, and which are runs of their own.

Files whose names differ in the split alone (`llava-random.jsonl`, `llava-popular.jsonl`) are one run; every other
file is a run, a row of its own in the table. Files get their splits by name. Only where no name tells one, and
there is a file with the right number of answers for each split, do they get them in the order given, and a note
says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.finished import names_of
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.pope.answers import Answered, AnswerFile, Matched, load_answers, match
from lvlm_attn.evals.pope.data import CATEGORIES, DATASETS, Question, dataset_of, split_of

_SPLIT_OR_DATASET = re.compile(
    rf"[-_. ]*(?<![a-z])(?:{'|'.join((*CATEGORIES, *DATASETS, 'a-okvqa', 'rand', 'pop', 'adv'))})(?![a-z])",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Run:
    """One run's answers.

    Attributes:
        answered: questions with raw answers.
        failed: samples that failed when the answers were generated.
        unasked: answers left out because their questions are not asked.
        files: the files, with the field read in each and what matched it.
        in_order: whether the files got their splits by order.
    """

    answered: list[Answered]
    failed: int
    unasked: int
    files: tuple[tuple[AnswerFile, str], ...]
    in_order: bool = False

    @property
    def notes(self) -> list[str]:
        """What a user should know about how the files were read."""
        found = [file.choice.sentence(file.path.name) for file, _ in self.files]
        if self.in_order:
            names = ", ".join(file.path.name for file, _ in self.files)
            found.append(
                f"no file's name tells its split, so {names} are taken in the order of the question files."
            )
        found += [
            f"answers of {file.path.name} are matched to questions by order, since nothing in it tells them apart."
            for file, by in self.files
            if by == "order" and any(item.question is None for item in file.given)
        ]
        if self.unasked:
            found.append(f"{self.unasked} answers are left out, since their questions are not asked.")
        return found


def match_runs(
    paths: Iterable[str | Path],
    questions: Sequence[Question],
    partial: bool = False,
    answer_field: str | None = None,
) -> dict[str, Run]:
    """Reads answer files, groups them into runs and pairs each answer with its question.

    Args:
        paths: the answer files; of a run folder, its `samples.jsonl`.
        questions: the questions they answer.
        partial: score the answered questions only; otherwise a missing answer is an error.
        answer_field: the field with the model's answers, where a file has two that could be.

    Returns:
        The runs by name, in the order their files were given.

    Raises:
        LvlmAttnError: unreadable file, a file named twice, answers missing, or answers to other questions.

    Example:
        >>> runs = match_runs(["llava-random.jsonl", "llava-popular.jsonl"], questions)  # doctest: +SKIP
        >>> list(runs)  # doctest: +SKIP
        ['llava']
    """
    files = [Path(path) for path in paths]
    if not files:
        raise LvlmAttnError("no answer file was given; name at least one.")
    if len({path.resolve() for path in files}) < len(files):
        raise LvlmAttnError("the same answer file is named twice; name each file once.")
    loaded = {path: load_answers(path, answer_field) for path in files}
    if ordered := _in_order(list(loaded.values()), questions):
        return {files[0].stem: _run(list(loaded.values()), questions, partial, ordered)}
    groups = _groups(files, {question.category for question in questions})
    names = _names(groups)
    return {
        name: _run([loaded[path] for path in group], questions, partial)
        for name, group in zip(names, groups, strict=True)
    }


def _in_order(files: Sequence[AnswerFile], questions: Sequence[Question]) -> list[list[Question]] | None:
    """The questions of each file by order of splits, where nothing else can tell them.

    Raises:
        LvlmAttnError: such files, but not one for each split.
    """
    categories = list(dict.fromkeys(question.category for question in questions))
    silent = all(
        _told_split(file.path) is None
        and file.given
        and not any(item.sample_id or item.categories for item in file.given)
        for file in files
    )
    parts = [[question for question in questions if question.category == category] for category in categories]
    largest = max(map(len, parts), default=0)
    if not silent or len(files) < 2 or len(parts) < 2 or any(len(file.given) > largest for file in files):
        return None
    if len(files) != len(parts):
        raise LvlmAttnError(
            f"{len(files)} answer files for {len(parts)} question categories; put random, popular or adversarial into "
            "each file's name, or score one category at a time."
        )
    return parts


def _groups(files: Sequence[Path], categories: set[str]) -> list[list[Path]]:
    """Files of one run together: the same name apart from the split, and no split twice."""
    groups: dict[object, list[Path]] = {}
    several = len(categories) > 1
    for path in files:
        split = _told_split(path)
        key: object = path
        if several and split is not None:
            key = (path.parent if split_of(path.stem) else path.parent.parent, _bare(path))
            told = {(_told_split(other), dataset_of(other.stem)) for other in groups.get(key, [])}
            key = path if (split, dataset_of(path.stem)) in told else key
        groups.setdefault(key, []).append(path)
    return list(groups.values())


def _told_split(path: Path) -> str | None:
    return split_of(path.stem) or split_of(path.parent.name)


def _bare(path: Path) -> str:
    """A file's name without split and data set."""
    return (
        _SPLIT_OR_DATASET.sub("", path.stem).strip("-_. ")
        or _SPLIT_OR_DATASET.sub("", path.parent.name)
        or "answers"
    )


def _names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """A short name for each run; equal names are told apart by their folders."""
    places = []
    for first, *others in groups:
        bare = first.with_name(_bare(first)) if others else first.with_name(first.stem)
        places.append(first.resolve().parent if first.stem == "samples" else bare)
    return names_of(places)


def _run(
    files: Sequence[AnswerFile],
    questions: Sequence[Question],
    partial: bool,
    ordered: Sequence[list[Question]] | None = None,
) -> Run:
    matched: list[Matched] = []
    covered: set[str] = set()
    for at, file in enumerate(files):
        own = ordered[at] if ordered else _questions_of(file, questions)
        matched.append(match(file, own, partial))
        covered |= {question.sample_id for question in own}
    left = [question for question in questions if question.sample_id not in covered]
    if left and not partial:
        named = ", ".join(dict.fromkeys(one_line(question.category) for question in left))
        raise LvlmAttnError(
            f"no answer file is for the questions of {named} (first: {files[0].path}); "
            "name those answers as well, or pass --partial to score the rest."
        )
    found = {item.question.sample_id: item for part in matched for item in part.answered}
    return Run(
        answered=[found[question.sample_id] for question in questions if question.sample_id in found],
        failed=sum(part.failed for part in matched),
        unasked=sum(part.unasked for part in matched),
        files=tuple((file, part.by) for file, part in zip(files, matched, strict=True)),
        in_order=ordered is not None,
    )


def _questions_of(file: AnswerFile, questions: Sequence[Question]) -> list[Question]:
    """The questions a file is for, by the split and data set in its name; all of them where it tells neither.

    Raises:
        LvlmAttnError: its name contradicts the questions and its records do not tell what they answer.
    """
    if file.given and all(item.sample_id for item in file.given):
        return list(questions)
    split, dataset = _told_split(file.path), dataset_of(file.path.stem)
    asked = {_split(question) for question in questions}
    told = bool(file.given) and all(item.question for item in file.given)
    if split is not None and asked != {None}:
        if split not in asked and not told:
            named = " and ".join(sorted(name for name in asked if name))
            raise LvlmAttnError(
                f"answer file {file.path} is named after the split {split}, the questions are {named}; "
                "name the question file the answers were made for."
            )
        if split in asked:
            questions = [question for question in questions if _split(question) == split]
    datasets = {dataset_of(question.source) for question in questions}
    if dataset is not None and None not in datasets:
        if dataset not in datasets and not told:
            raise LvlmAttnError(
                f"answer file {file.path} is named after {dataset}, the questions are from "
                f"{' and '.join(sorted(map(str, datasets)))}; name the question file the answers were made for."
            )
        if dataset in datasets:
            questions = [question for question in questions if dataset_of(question.source) == dataset]
    return list(questions)


def _split(question: Question) -> str | None:
    return question.category if question.category in CATEGORIES else split_of(question.category)


def match_answers(
    paths: Iterable[str | Path],
    questions: Sequence[Question],
    partial: bool = False,
    answer_field: str | None = None,
) -> tuple[list[Answered], int]:
    """Reads the answer files of one run and pairs each answer with its question.

    One file may answer all questions, or several files one split each, told apart by the splits in their names.

    Args:
        paths: the answer files.
        questions: the questions they answer.
        partial: score the answered questions only; otherwise a missing answer is an error.
        answer_field: the field with the model's answers, where a file has two that could be.

    Returns:
        The pairs in question order, and how many answers were left out because generating them failed.

    Raises:
        LvlmAttnError: unreadable file, answers missing, answers that belong to other questions, or files that are
            several runs.
    """
    runs = match_runs(paths, questions, partial, answer_field)
    if len(runs) > 1:
        raise LvlmAttnError(
            f"the answer files are {len(runs)} runs ({', '.join(list(runs)[:3])}), not one; match them one by one."
        )
    (run,) = runs.values()
    return run.answered, run.failed
