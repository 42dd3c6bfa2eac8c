"""NaturalBench: two questions about two pictures, with opposite answers across pictures and questions.

Q-acc is the share of questions answered rightly about both pictures, I-acc that of pictures with both questions right,
G-acc that of groups with all four right. A model that does not look cannot score in any of them.

Source: Li et al., "NaturalBench: Evaluating Vision-Language Models on Natural Adversarial Samples", NeurIPS 2024
(arXiv 2410.14669); the words after each question are those of its ``naturalbench_vqa.py``. Read are the hub's parquet
(BaiqiL/NaturalBench, four questions a row), and one question a row as in lmms-eval's copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.stored import StoredRow

SUFFIXES = {
    "yes_no": " Please answer Yes or No.",
    "multiple_choice": " Please output the letter corresponding to the correct option.",
}
_LABELS: dict[str, Any] = {"yes": "yes", "no": "no", "a": "A", "b": "B"}


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions, four per group.

    Raises:
        LvlmAttnError: no table is there, or an entry is not as released.
    """
    found: list[ClosedQuestion] = []
    single = 0
    for row in folder.table_rows():
        if "question_0" in row.value:
            found += _of_group(folder, row)
        elif "question" in row.value and "question_type" in row.value:
            found.append(_of_single(folder, row, single))
            single += 1
    if not found:
        raise LvlmAttnError(
            f"NaturalBench: no table with Question_0 and Question_1 is in {folder.path}; "
            "pass the folder with its parquet files, or BaiqiL/NaturalBench."
        )
    return found


def _of_group(folder: DataFolder, row: StoredRow) -> Iterator[ClosedQuestion]:
    group = text_in(row.value, ("index",), row.where)
    for question in ("0", "1"):
        for image in ("0", "1"):
            answer = row.value.get(f"image_{image}_question_{question}")
            column = next((name for name in row.pictures if name.lower() == f"image_{image}"), "")
            place = str(row.value.get(f"image_{image}") or f"{group}-image-{image}")
            picture = folder.stored(row, column, place)
            text = text_in(row.value, (f"question_{question}",), row.where)
            yield _question(row, group, question, image, text, answer, picture)


def _of_single(folder: DataFolder, row: StoredRow, place: int) -> ClosedQuestion:
    """Rows of lmms-eval's copy: the first question about both pictures, then the second."""
    group, at = str(place // 4), place % 4
    column = next((name for name in row.pictures if name.lower() == "image"), "")
    picture = folder.stored(row, column, str(row.value.get("image") or f"{group}-image-{at % 2}"))
    text = text_in(row.value, ("question",), row.where)
    return _question(row, group, str(at // 2), str(at % 2), text, row.value.get("answer"), picture)


def _question(
    row: StoredRow, group: str, question: str, image: str, text: str, answer: object, picture: Any
) -> ClosedQuestion:
    kind = one_of(row.value.get("question_type", "yes_no"), SUFFIXES, "question_type", row.where)
    label = one_of(
        answer,
        ("yes", "no") if kind == "yes_no" else ("a", "b"),
        f"the answer to question {question}",
        row.where,
    )
    return ClosedQuestion(
        sample_id=f"{group}:q{question}-i{image}",
        question_id=f"{group}:q{question}-i{image}",
        image=f"{group}-image-{image}",
        text=text + SUFFIXES[kind],
        label=_LABELS[label],
        picture=picture,
        part=kind,
        cluster=group,
        groups={"question": f"{group}:q{question}", "image": f"{group}:i{image}", "group": group},
        options=("", "") if kind == "multiple_choice" else (),
    )


def metrics(parts: Parts) -> dict[str, float]:
    """Single answers, then questions, pictures and groups with everything right."""
    both = whole(parts)
    return {
        "accuracy": both.accuracy,
        "q_acc": both.share("question"),
        "i_acc": both.share("image"),
        "g_acc": both.share("group"),
    }


NATURALBENCH = Closed(
    name="naturalbench",
    title="NaturalBench",
    about="NaturalBench: two questions about two pictures; Q-acc, I-acc and G-acc.",
    source="arXiv 2410.14669",
    read=read,
    metrics=metrics,
    kinds=("question", "image", "group"),
    parts=tuple(SUFFIXES),
    hub="BaiqiL/NaturalBench",
)
