"""AMBER's discriminative part: yes/no questions on existence, attributes and relations.

Precision, recall and F1 are those of the answer No, since the task is to notice what is not there. The authors add
0.0001 to the denominator of F1 and take no answer but ``Yes`` and ``No`` (``--parser amber``).

Source: Wang et al., "AMBER: An LLM-free Multi-dimensional Benchmark for MLLMs Hallucination Evaluation", 2023 (arXiv
2311.07397). Read are ``annotations.json`` and ``query_discriminative.json`` (or ``query_all.json``, or the files of
single dimensions) with the pictures ``AMBER_1.jpg`` to ``AMBER_1004.jpg``.
"""

from __future__ import annotations

from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.cells import Cells, harmonic
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.fields import flatten
from lvlm_attn.evals.core.records import Record, read_records

KINDS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-relation": "relation",
    "relation": "relation",
}
DIMENSIONS = {
    "existence": ("existence",),
    "attribute": ("state", "number", "action"),
    "relation": ("relation",),
}
_QUERIES = ("query_discriminative.json", "query_all.json")
_PARTS = tuple(f"query_discriminative-{name}.json" for name in DIMENSIONS)


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions with their answers.

    Raises:
        LvlmAttnError: a file is missing, or an entry is not as released.
    """
    truths = {
        text_in(record.value, ("id",), f"AMBER annotations, {record.where}"): record.value
        for record in read_records(folder.require("annotations.json"), "AMBER annotations").records
    }
    found: list[ClosedQuestion] = []
    for path in query_files(folder, _QUERIES, _PARTS):
        for record in read_records(path, "AMBER queries").records:
            where = f"AMBER queries {path}, {record.where}"
            question = _question(folder, record, truths, where)
            if question is not None:
                found.append(question)
    if not found:
        raise LvlmAttnError(
            f"AMBER: {folder.path} has no discriminative queries; pass the folder of its data."
        )
    return found


def query_files(folder: DataFolder, names: tuple[str, ...], pieces: tuple[str, ...] = ()) -> list[Path]:
    """The file with all queries, else those of single dimensions that are there.

    Raises:
        LvlmAttnError: there is none.
    """
    found = folder.find(*names)
    if found is not None:
        return [found]
    parts = [path for name in pieces if (path := folder.find(name)) is not None]
    return parts or [folder.require(*names)]


def _question(
    folder: DataFolder, record: Record, truths: dict[str, dict[str, object]], where: str
) -> ClosedQuestion | None:
    value = flatten(record.value)
    number = text_in(value, ("id",), where)
    truth = truths.get(number)
    if truth is None:
        raise LvlmAttnError(
            f"{where}: query {number} has no annotation; the two files do not belong together."
        )
    if truth.get("type") == "generative":
        return None
    kind = one_of(truth.get("type"), KINDS, "the type", f"AMBER annotation {number}")
    image = text_in(value, ("image",), where)
    return ClosedQuestion(
        sample_id=number,
        question_id=number,
        image=image,
        text=text_in(value, ("query", "question"), where),
        label=one_of(truth.get("truth"), ("yes", "no"), "the truth", f"AMBER annotation {number}"),
        picture=folder.picture(image),
        part=KINDS[kind],
    )


def _f1(cells: Cells) -> float:
    return harmonic(cells.no_precision, cells.no_recall)


def metrics(parts: Parts) -> dict[str, float]:
    """Right answers, precision, recall and F1 of No, then right answers and F1 of every dimension."""
    both = whole(parts)
    found = {
        "accuracy": both.accuracy,
        "precision": both.no_precision,
        "recall": both.no_recall,
        "f1": _f1(both),
        "yes_ratio": both.yes_ratio,
    }
    for name, kinds in DIMENSIONS.items():
        own = {kind: parts[kind] for kind in kinds if kind in parts}
        if own and len(own) < len(parts):
            found[f"accuracy_{name}"] = whole(own).accuracy
            found[f"f1_{name}"] = _f1(whole(own))
    return found


AMBER_D = Closed(
    name="amber-d",
    title="AMBER discriminative",
    about="AMBER, discriminative: yes/no questions on existence, attributes and relations.",
    source="arXiv 2311.07397",
    read=read,
    metrics=metrics,
    parts=("existence", "state", "number", "action", "relation"),
    subsets={name: kinds for name, kinds in DIMENSIONS.items() if name not in kinds},
)
