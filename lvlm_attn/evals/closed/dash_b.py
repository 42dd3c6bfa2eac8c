"""DASH-B: is an object in a picture that makes models see it? Half of the pictures hold it, half do not.

Source: Augustin, Neuhaus and Hein, "DASH: Detection and Assessment of Systematic Hallucinations of VLMs", 2025
(arXiv 2503.23573); the question is that of its ``dash_b.py``. Read are ``dash_benchmark_neg.json`` and
``dash_benchmark_pos.json`` with the pictures in ``neg`` and ``pos``, and the hub's parquet (YanNeu/DASH-B).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.cells import harmonic
from lvlm_attn.evals.closed.folder import DataFolder, one_of, text_in
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.spec import Closed, Parts, whole
from lvlm_attn.evals.core.jsonio import read_bytes

QUESTION = "Can you see a {object} in this image? Please answer only with yes or no."
_ASKED = re.compile(r"Can you see an? (.+?) in this image", re.IGNORECASE)
_FILES = {"no": ("dash_benchmark_neg.json", "neg"), "yes": ("dash_benchmark_pos.json", "pos")}


def read(folder: DataFolder) -> list[ClosedQuestion]:
    """The questions, those with the answer no first.

    Raises:
        LvlmAttnError: the questions are not there, or a file is not as released.
    """
    if folder.find(_FILES["no"][0]) or folder.find(_FILES["yes"][0]):
        return [item for label in _FILES for item in _of_file(folder, label)]
    found = list(_of_tables(folder))
    if not found:
        raise LvlmAttnError(
            f"DASH-B: neither {_FILES['no'][0]} nor a table of the hub is in {folder.path}; "
            "pass the folder with your copy of DASH-B."
        )
    return found


def _of_file(folder: DataFolder, label: str) -> Iterator[ClosedQuestion]:
    name, place = _FILES[label]
    path = folder.require(name)
    for dataset, objects in _tree(path):
        for item, files in objects:
            for file in files:
                image = f"{place}/{dataset}/{item}/{file}"
                yield _question(
                    f"{label}:{dataset}/{item}/{file}", str(file), image, item, label, dataset, folder
                )


def _tree(path: Path) -> Iterator[tuple[str, Iterator[tuple[str, list[Any]]]]]:
    """Data sets, their objects, and the file names of each."""
    try:
        value = json.loads(read_bytes(path, "DASH-B file"))
    except (ValueError, RecursionError) as error:
        raise LvlmAttnError(f"DASH-B file {path} is not valid JSON; fetch it again.") from error
    for dataset, objects in value.items() if isinstance(value, dict) else [("", None)]:
        if not isinstance(objects, dict) or not all(isinstance(files, list) for files in objects.values()):
            raise LvlmAttnError(
                f"DASH-B file {path}: expected data sets of objects of file names; fetch the file again."
            )
        yield str(dataset), iter(objects.items())


def _of_tables(folder: DataFolder) -> Iterator[ClosedQuestion]:
    for row in folder.table_rows():
        if "question" not in row.value:
            continue
        text = text_in(row.value, ("question",), row.where)
        asked = _ASKED.search(text)
        answer = next((row.value[name] for name in ("answer", "label", "gt") if name in row.value), None)
        label = one_of(answer, ("yes", "no"), "the answer", row.where)
        name = text_in(row.value, ("question_id", "img_id", "index"), row.where)
        yield ClosedQuestion(
            sample_id=name,
            question_id=name,
            image=name,
            text=text,
            label=label,
            picture=folder.stored(row, "image", name),
            part=str(row.value.get("dataset") or "all"),
            object=str(
                row.value.get("object") or row.value.get("object_name") or (asked.group(1) if asked else "")
            ),
        )


def _question(
    name: str, file: str, image: str, item: str, label: str, dataset: str, folder: DataFolder
) -> ClosedQuestion:
    return ClosedQuestion(
        sample_id=name,
        question_id=file,
        image=image,
        text=QUESTION.format(object=item),
        label=label,
        picture=folder.picture(f"images/{image}", (image.split("/")[0], dataset, item)),
        part=dataset,
        object=item,
    )


def metrics(parts: Parts) -> dict[str, float]:
    """Right answers, those where the object is (tpr) and where it is not (tnr), and the harmonic mean of these."""
    both = whole(parts)
    return {
        "accuracy": both.accuracy,
        "tnr": both.no_recall,
        "tpr": both.recall,
        "harmonic_mean": harmonic(both.no_recall, both.recall),
        "yes_ratio": both.yes_ratio,
    }


DASH_B = Closed(
    name="dash-b",
    title="DASH-B",
    about="DASH-B: objects that models see in pictures without them.",
    source="arXiv 2503.23573",
    read=read,
    metrics=metrics,
    hub="YanNeu/DASH-B",
)
