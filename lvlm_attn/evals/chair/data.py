"""CHAIR's files: ground truth and captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.chair.coco import CocoObjects, kind_of, read_coco
from lvlm_attn.evals.chair.score import Caption
from lvlm_attn.evals.chair.vocab import nodes_of, read_caption
from lvlm_attn.evals.core.fields import (
    CAPTIONS,
    IDS,
    IMAGE_IDS,
    PLAIN,
    PREDICTIONS,
    Choice,
    Row,
    answer_text,
    choose,
    first_id,
    flatten,
    image_of,
    text_of,
)
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.pictures import image_key
from lvlm_attn.evals.core.records import Record, is_coco, latest_by_id, read_records

__all__ = [
    "CaptionFile",
    "GroundTruth",
    "caption_of",
    "image_key",
    "load_caption_file",
    "load_captions",
    "load_ground_truth",
    "truth_of_coco",
]


@dataclass(frozen=True)
class GroundTruth:
    """What is in each picture.

    Attributes:
        objects: categories by picture key.
        file_names: file name by picture key, where the file tells one.
        sha256: hash of the file.
        unknown: object names outside CHAIR's 80 categories; they can be neither recalled nor hallucinated.
        notes: what a user should know about it.
        is_coco: whether it is a whole part of COCO, of which a picture folder holds some.
    """

    objects: Mapping[str, frozenset[str]]
    file_names: Mapping[str, str]
    sha256: str
    unknown: tuple[str, ...]
    notes: tuple[str, ...] = ()
    is_coco: bool = False


def load_ground_truth(
    paths: str | Path | Iterable[str | Path], mode: str = "strict", show_progress: bool = False
) -> GroundTruth:
    """Reads what is in each picture.

    Read are `{"image_id": ..., "objects": [names], "captions": [texts]}` records (one of the two may be absent), what
    `lvlm-attn chair truth` writes, and COCO's own instances and captions files. ``objects`` are names of instances,
    ``captions`` reference captions, read by the same rules as generated ones. Several files are joined by picture.

    Args:
        paths: the file or files.
        mode: how words become categories; use the mode the captions are scored with.
        show_progress: draw a progress bar while COCO's files are read.

    Raises:
        LvlmAttnError: unreadable file, an entry of another form, a file made for another mode, or no known object
            name at all.
    """
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    coco: dict[str, list[Path]] = {"instances": [], "captions": []}
    parts = []
    for path in listed:
        if is_coco(path):
            coco[kind_of(path)].append(path)
        else:
            parts.append(_own_truth(path, mode))
    if any(coco.values()):
        parts.append(
            truth_of_coco(read_coco(coco["instances"], coco["captions"], mode, show_progress=show_progress))
        )
    if not parts:
        raise LvlmAttnError(
            "no ground-truth file was given; name one, or COCO's instances and captions files."
        )
    return parts[0] if len(parts) == 1 else _joined(parts)


def truth_of_coco(coco: CocoObjects) -> GroundTruth:
    """Ground truth from COCO's annotations."""
    objects = {image: frozenset(coco.objects(image)) for image in coco.pictures()}
    notes = [
        f"the ground truth has no {what}, so objects only those tell count as hallucinated."
        for what, found in (("reference captions", coco.captions), ("instances", coco.instances))
        if not found
    ]
    return GroundTruth(objects, coco.file_names, coco.sha256, tuple(coco.unknown), tuple(notes), is_coco=True)


def _joined(parts: list[GroundTruth]) -> GroundTruth:
    objects: dict[str, frozenset[str]] = {}
    names: dict[str, str] = {}
    for part in parts:
        for key, found in part.objects.items():
            objects[key] = objects.get(key, frozenset()) | found
        names = {**part.file_names, **names}
    digest = sha256(" ".join(part.sha256 for part in parts).encode()).hexdigest()
    unknown = dict.fromkeys(name for part in parts for name in part.unknown)
    return GroundTruth(objects, names, digest, tuple(unknown))


def _own_truth(path: Path, mode: str) -> GroundTruth:
    file = read_records(path, "ground-truth file")
    objects: dict[str, frozenset[str]] = {}
    names: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for record in file.records:
        value, where = record.value, f"ground-truth file {path}, {record.where}"
        row = flatten(value)
        image = image_of(row, IMAGE_IDS)
        listed, captions = value.get("objects", value.get("gt_object", [])), value.get("captions", [])
        if image is None or not {"objects", "captions", "gt_object"} & set(value):
            raise LvlmAttnError(
                f'{where}: expected {{"image_id": ..., "objects": [names]}}; correct the entry.'
            )
        if not _are_strings(listed) or not _are_strings(captions):
            raise LvlmAttnError(f"{where}: objects and captions must be lists of strings; correct the entry.")
        made_for = value.get("mode", mode)
        if made_for != mode:
            raise LvlmAttnError(
                f"{where}: made for mode {shown(made_for)}, captions are scored in mode {mode}; "
                f"make it again with `lvlm-attn chair truth --mode {mode}`, or pass that mode."
            )
        nodes, outside = nodes_of(listed, mode)
        unknown.update(dict.fromkeys(outside))
        for text in captions:
            nodes |= {mention.node for mention in read_caption(text, mode).mentions}
        key = image_key(image)
        objects[key] = objects.get(key, frozenset()) | nodes
        names[key] = str(value.get("file_name") or image)
    if not any(objects.values()):
        raise LvlmAttnError(
            f"ground-truth file {path} names no COCO object; use COCO category names or their synonyms."
        )
    return GroundTruth(objects, names, file.sha256, tuple(unknown))


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


@dataclass(frozen=True)
class CaptionFile:
    """The captions of one file.

    Attributes:
        path: the file.
        captions: one per picture.
        failed: records without a caption because generating it failed.
        choice: which field was taken for the captions.
        notes: what a user should know about how it was read.
    """

    path: Path
    captions: tuple[Caption, ...]
    failed: int
    choice: Choice
    notes: tuple[str, ...] = ()


def load_caption_file(path: str | Path, answer_field: str | None = None) -> CaptionFile:
    """Reads one file of captions in any form that :mod:`lvlm_attn.evals.core.fields` lists.

    Args:
        path: the file.
        answer_field: the field with the captions, where a file has two that could be.

    Raises:
        LvlmAttnError: unreadable file, an entry of another form, or two captions of one picture.
    """
    path = Path(path)
    records = [
        (record, flatten(record.value)) for record in latest_by_id(read_records(path, "caption file").records)
    ]
    spoken = [(record, row) for record, row in records if not row.get("error")]
    failed = len(records) - len(spoken)
    if not spoken:
        return CaptionFile(path, (), failed, Choice("raw_text"))
    choice = choose([row for _, row in spoken], f"caption file {path}", answer_field, captions=True)
    captions: dict[str, Caption] = {}
    borrowed = False
    for record, row in spoken:
        image = image_of(row, IMAGE_IDS)
        if image is None:
            image = first_id(row, (*IDS, "id", "key"))
            borrowed = image is not None
        caption = _caption(row, image, answer_text(row, choice, captions=True))
        if caption is None:
            raise _no_caption(record, row, choice, path)
        if caption.image in captions:
            raise LvlmAttnError(
                f"caption file {path}, {record.where}: a second caption of image {one_line(caption.image)}; "
                "keep one per picture."
            )
        captions[caption.image] = caption
    notes = [choice.sentence(path.name)]
    if borrowed:
        notes.append(f"{path.name} has no image_id; its question_id is taken for the picture's id.")
    return CaptionFile(path, tuple(captions.values()), failed, choice, tuple(notes))


def _no_caption(record: Record, row: Row, choice: Choice, path: Path) -> LvlmAttnError:
    has = one_line(", ".join(row)) or "nothing"
    return LvlmAttnError(
        f"caption file {path}, {record.where}: expected image_id and {choice.field} as text, found {has}; "
        "correct the entry."
    )


def load_captions(paths: Iterable[str | Path], answer_field: str | None = None) -> tuple[list[Caption], int]:
    """Reads the caption files of one run.

    Args:
        paths: the files; no two may describe the same picture.
        answer_field: as for :func:`load_caption_file`.

    Returns:
        The captions, and how many were left out because generating them failed.

    Raises:
        LvlmAttnError: as :func:`load_caption_file`, or two captions of one picture.
    """
    files = [load_caption_file(path, answer_field) for path in paths]
    captions: dict[str, Caption] = {}
    for file in files:
        for caption in file.captions:
            if caption.image in captions:
                raise LvlmAttnError(
                    f"caption file {file.path}: a second caption of image {one_line(caption.image)}; "
                    "keep one per picture."
                )
            captions[caption.image] = caption
    return list(captions.values()), sum(file.failed for file in files)


def caption_of(value: Mapping[str, Any]) -> Caption | None:
    """The caption in one line of a run, or None where the line has another form."""
    row = flatten(value)
    texts = (text_of(row.get(name)) for name in ("raw_text", *CAPTIONS, *PREDICTIONS, *PLAIN))
    return _caption(row, image_of(row, IMAGE_IDS), next((text for text in texts if text is not None), None))


def _caption(row: Row, image: str | None, text: str | None) -> Caption | None:
    if image is None or text is None:
        return None
    reason = row.get("finish_reason")
    return Caption(image_key(image), text, None if reason is None else reason == "length")
