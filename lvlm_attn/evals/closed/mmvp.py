"""MMVP: pairs of pictures that CLIP takes for alike, with one question and opposite answers.

A pair counts if both pictures are answered rightly. The authors let GPT-4 compare answers; here a rule reads the
letter, or the option that is repeated. Two pairs of the original file have their answers exchanged (rows 99 and 100,
279 and 280, as reported to its authors and corrected in the hub's lmms-lab-eval/MMVP); the file is scored as it is.

Source: Tong et al., "Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs", CVPR 2024
(arXiv 2401.06209). Read are ``Questions.csv`` with the pictures ``1.jpg`` to ``300.jpg``, and the hub's parquet.
"""

from __future__ import annotations

import re

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.fields import flatten
from lvlm_attn.evals.core.stored import StoredRow, stored_rows

_OPTION = re.compile(r"\(([ab])\)\s*(.+?)(?=\s*\([ab]\)|$)", re.IGNORECASE | re.DOTALL)
_EXCHANGED = {"99": "A", "100": "B", "279": "A", "280": "B"}
"""Rows of the original file whose answers belong to the other picture of their pair, and what they say."""


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions, two per pair.

    Raises:
        LvlmAttnError: the questions are not there, or an entry is not as released.
    """
    table = folder.find("Questions.csv")
    if table is not None:
        rows = [
            StoredRow(row.where, flatten(row.value), row.pictures)
            for row in stored_rows(table, "MMVP questions")
        ]
    else:
        rows = [row for row in folder.table_rows() if "options" in row.value]
    if not rows:
        raise LvlmAttnError(
            f"MMVP: neither Questions.csv nor a table of the hub is in {folder.path}; "
            "pass the folder with your copy of MMVP."
        )
    found = [_question(folder, row) for row in rows]
    labels = {item.question_id: item.label for item in found}
    if all(labels.get(name) == said for name, said in _EXCHANGED.items()):
        folder.remarks.append(
            "this copy of MMVP has the original answers of rows 99, 100, 279 and 280, which belong to the other "
            "picture of their pair; the hub's lmms-lab-eval/MMVP corrects them."
        )
    return found


def _question(folder: DataFolder, row: StoredRow) -> ClosedQuestion:
    index = text_in(row.value, ("index", "idx", "question_id"), row.where)
    if not index.isdecimal() or int(index) < 1:
        raise LvlmAttnError(
            f"{row.where}: index is {index!r}, expected a number from 1 up; correct the entry."
        )
    pair = f"pair-{(int(index) + 1) // 2}"
    told = text_in(row.value, ("options",), row.where)
    options = tuple(text.strip() for _, text in _OPTION.findall(told))
    if len(options) != 2:
        raise LvlmAttnError(
            f"{row.where}: options are {told!r}, expected '(a) ... (b) ...'; correct the entry."
        )
    answer = one_of(
        row.value.get("correct_answer", row.value.get("answer")), ("a", "b"), "the right answer", row.where
    )
    return ClosedQuestion(
        sample_id=index,
        question_id=index,
        image=f"{index}.jpg",
        text=f"{text_in(row.value, ('question',), row.where)} {told}",
        label="A" if answer == "a" else "B",
        picture=folder.stored(row, "image", f"MMVP Images/{index}.jpg"),
        cluster=pair,
        groups={"pair": pair},
        options=options,
    )


def metrics(parts: Parts) -> dict[str, float]:
    """Pairs with both answers right, and single answers."""
    both = whole(parts)
    return {"accuracy": both.accuracy, "accuracy_pair": both.share("pair")}


MMVP = Closed(
    name="mmvp",
    title="MMVP",
    about="MMVP: pairs of pictures that look alike to CLIP, by rule.",
    source="arXiv 2401.06209",
    read=read,
    metrics=metrics,
    kinds=("pair",),
    hub="lmms-lab-eval/MMVP",
    max_new_tokens=32,
)
