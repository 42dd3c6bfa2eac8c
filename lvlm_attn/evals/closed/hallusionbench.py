"""HallusionBench by rule: the same questions about a picture and its edited versions.

aAcc is the share of right answers, fAcc that of pictures with every question right, qAcc that of questions answered
rightly about every picture of their set. The authors let GPT-4 judge; here a rule reads yes and no, as VLMEvalKit does
(its rule is ``--parser vlmeval``). Questions without a picture are left out, as there.

Source: Guan et al., "HallusionBench", CVPR 2024 (arXiv 2310.14566). Read are ``HallusionBench.json`` with the pictures
of ``hallusion_bench.zip``, the hub's parquet and VLMEvalKit's TSV.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.fields import flatten
from lvlm_attn.evals.core.stored import StoredRow, stored_rows

_LABELS = {"1": "yes", "yes": "yes", "0": "no", "no": "no"}


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions that have a picture.

    Raises:
        LvlmAttnError: the questions are not there, or an entry is not as released.
    """
    file = folder.find("HallusionBench.json")
    if file is not None:
        rows = [
            StoredRow(row.where, flatten(row.value), row.pictures)
            for row in stored_rows(file, "HallusionBench questions")
        ]
    else:
        rows = list(folder.table_rows())
    if not rows:
        raise LvlmAttnError(
            f"HallusionBench: neither HallusionBench.json nor a table is in {folder.path}; "
            "pass the folder with your copy of HallusionBench."
        )
    shown = [row for row in rows if str(row.value.get("visual_input", "1")) != "0"]
    if len(shown) < len(rows):
        folder.remarks.append(
            f"{len(rows) - len(shown)} questions of HallusionBench have no picture; left out."
        )
    return [_question(folder, row) for row in shown]


def _question(folder: DataFolder, row: StoredRow) -> ClosedQuestion:
    value = row.value
    category = text_in(value, ("category",), row.where)
    subcategory = text_in(value, ("subcategory", "l2_category"), row.where)
    part = f"{category}/{subcategory.removeprefix(f'{category}_')}"
    numbers = _numbers(value, row.where)
    whole_set = f"{part}/{numbers[0]}"
    figure, question = f"{whole_set}/figure-{numbers[1]}", f"{whole_set}/question-{numbers[2]}"
    answer = value.get("gt_answer", value.get("answer"))
    label = _LABELS[one_of(answer, _LABELS, "the answer", row.where)]
    place = str(value.get("filename") or f"{part}/{numbers[0]}_{numbers[1]}.png").removeprefix("./")
    return ClosedQuestion(
        sample_id=f"{figure}/question-{numbers[2]}",
        question_id=f"{figure}/question-{numbers[2]}",
        image=Path(place).as_posix(),
        text=text_in(value, ("question",), row.where),
        label=label,
        picture=folder.stored(row, "image", place, part.split("/")),
        part=part,
        cluster=whole_set,
        groups={"figure": figure, "question": question},
    )


def _numbers(value: dict[str, object], where: str) -> list[str]:
    """Numbers of set, figure and question; VLMEvalKit keeps them at the end of its index."""
    names = ("set_id", "figure_id", "question_id")
    if all(name in value for name in names[:2]):
        return [text_in(value, (name,), where) for name in names]
    found = text_in(value, ("index",), where).split("_")[-3:]
    if len(found) != 3 or not all(item.isdecimal() for item in found):
        raise LvlmAttnError(f"{where}: no set_id, figure_id and question_id; fetch the file again.")
    return found


def metrics(parts: Parts) -> dict[str, float]:
    """The three accuracies, and single answers where the picture is needed (VD) or only adds to them (VS)."""
    both = whole(parts)
    found = {"aAcc": both.accuracy, "fAcc": both.share("figure"), "qAcc": both.share("question")}
    for kind in ("VD", "VS"):
        own = {part: cells for part, cells in parts.items() if part.startswith(f"{kind}/")}
        if own and len(own) < len(parts):
            found[f"aAcc_{kind}"] = whole(own).accuracy
    return {**found, "yes_ratio": both.yes_ratio}


HALLUSIONBENCH = Closed(
    name="hallusionbench",
    title="HallusionBench",
    about="HallusionBench by rule, without a judge: aAcc, fAcc and qAcc.",
    source="arXiv 2310.14566",
    read=read,
    metrics=metrics,
    outcome="aAcc",
    kinds=("figure", "question"),
    hub="lmms-lab-encoder/HallusionBench",
    subsets={
        "VD": tuple(f"VD/{name}" for name in ("illusion", "figure", "ocr", "math", "video")),
        "VS": tuple(f"VS/{name}" for name in ("chart", "table", "ocr", "map")),
    },
)
