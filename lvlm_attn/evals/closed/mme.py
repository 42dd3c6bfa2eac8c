"""MME: two yes/no questions about each picture, one of them with the answer no.

A sub-task scores 100 points for the share of right answers (acc) and 100 for the share of pictures with both right
(acc+), 200 at most. Perception has ten sub-tasks (2000 points), cognition four (800); the two are never added up here,
since numbers of both kinds are quoted as "MME". The hallucination subset is existence, count, position and color (800).

Source: Fu et al., "MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models", 2023
(arXiv 2306.13394). Read are the released folders (one per sub-task, pictures beside text files or in ``images`` and
``questions_answers_YN``), the hub's parquet and VLMEvalKit's TSV.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.records import decode
from lvlm_attn.evals.core.stored import StoredPicture

HALLUCINATION = ("existence", "count", "position", "color")
PERCEPTION = (*HALLUCINATION, "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUMS = {"perception": PERCEPTION, "cognition": COGNITION, "hallucination": HALLUCINATION}
_QUESTIONS = "questions_answers_YN"
_TASKS = {name.lower(): name for name in (*PERCEPTION, *COGNITION)}


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions of every sub-task there is.

    Raises:
        LvlmAttnError: no sub-task is there, or a file is not as released.
    """
    found = list(_of_folders(folder)) or list(_of_tables(folder))
    if not found:
        raise LvlmAttnError(
            f"MME: {folder.path} holds no sub-task ({', '.join(PERCEPTION[:4])}, ...) with question files and no "
            "table of the hub; pass the folder MME_Benchmark_release_version."
        )
    return found


def _of_folders(folder: DataFolder) -> Iterator[ClosedQuestion]:
    places = [folder.path, *sorted(folder.path.rglob("*"))] if folder.path.is_dir() else []
    for place in places:
        task = _TASKS.get(place.name.lower())
        if task is None or not place.is_dir():
            continue
        inner = place / _QUESTIONS
        for path in sorted((inner if inner.is_dir() else place).glob("*.txt")):
            yield from _of_file(folder, path, task)


def _of_file(folder: DataFolder, path: Path, task: str) -> Iterator[ClosedQuestion]:
    lines = decode(read_bytes(path, "MME questions"), path, "MME questions").strip().splitlines()
    rows = [line.split("\t") for line in lines]
    if len(rows) != 2 or any(len(row) != 2 for row in rows):
        raise LvlmAttnError(
            f"MME questions {path}: expected two lines of a question, a tab and Yes or No; fetch the file again."
        )
    inner = "images/" if path.parent.name == _QUESTIONS else ""
    picture = folder.picture(f"{task}/{inner}{path.stem}", (task,))
    image = f"{task}/{path.stem}"
    for i, (text, answer) in enumerate(rows, 1):
        label = one_of(answer, ("yes", "no"), "the answer", f"MME questions {path}, line {i}")
        yield _question(f"{image}:{i}", image, text.strip(), label, picture, task)


def _of_tables(folder: DataFolder) -> Iterator[ClosedQuestion]:
    seen: dict[str, int] = {}
    for row in folder.table_rows():
        value = row.value
        if "category" not in value or "question" not in value:
            continue
        task = _TASKS[one_of(value["category"], _TASKS, "category", row.where)]
        place = text_in(value, ("question_id", "image_path", "index"), row.where)
        image = f"{task}/{Path(place).stem}"
        seen[image] = seen.get(image, 0) + 1
        label = one_of(value.get("answer"), ("yes", "no"), "answer", row.where)
        text = text_in(value, ("question",), row.where)
        picture = folder.stored(row, "image", place, (task,))
        yield _question(f"{image}:{seen[image]}", image, text, label, picture, task)


def _question(
    name: str, image: str, text: str, label: str, picture: Path | StoredPicture, task: str
) -> ClosedQuestion:
    return ClosedQuestion(
        sample_id=name,
        question_id=image,
        image=image,
        text=text,
        label=label,
        picture=picture,
        part=task,
        groups={"plus": image},
    )


def points(parts: Parts, task: str) -> float:
    """The score of a sub-task, 0 to 200."""
    return 100 * parts[task].accuracy + 100 * parts[task].share("plus")


def metrics(parts: Parts) -> dict[str, float]:
    """Accuracy over all questions, acc+, the sums whose sub-tasks are all there, and every sub-task's points."""
    both = whole(parts)
    sums = {
        name: sum(points(parts, task) for task in tasks)
        for name, tasks in SUMS.items()
        if set(tasks) <= set(parts)
    }
    tasks = {f"{task}_points": points(parts, task) for task in parts}
    return {
        "accuracy": both.accuracy,
        "accuracy_plus": both.share("plus"),
        **sums,
        "yes_ratio": both.yes_ratio,
        **tasks,
    }


MME = Closed(
    name="mme",
    title="MME",
    about="MME: perception, cognition and the hallucination subset, by acc and acc+.",
    source="arXiv 2306.13394",
    read=read,
    metrics=metrics,
    kinds=("plus",),
    parts=(*PERCEPTION, *COGNITION),
    subsets=SUMS,
    units=dict.fromkeys((*SUMS, *(f"{task}_points" for task in (*PERCEPTION, *COGNITION))), "points"),
    hub="lmms-lab-encoder/MME",
)
