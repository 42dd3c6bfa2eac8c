"""CHAIR's files: ground truth and captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.score import Caption
from lvlm_attn.evals.chair.vocab import nodes_of, read_caption
from lvlm_attn.evals.core.jsonio import read_records
from lvlm_attn.evals.core.run_folder import latest_by_id

_NUMBERED = re.compile(r"(?:COCO_\w+?_)?0*(\d+)")
_CAPTION_KEYS = ("raw_text", "caption", "text", "answer")


@dataclass(frozen=True)
class GroundTruth:
    """What is in each picture.

    Attributes:
        objects: categories by picture key.
        file_names: file name by picture key, where the file tells one.
        sha256: hash of the file.
        unknown: object names outside CHAIR's 80 categories; they can be neither recalled nor hallucinated.
    """

    objects: Mapping[str, frozenset[str]]
    file_names: Mapping[str, str]
    sha256: str
    unknown: tuple[str, ...]


def image_key(image: object) -> str:
    """One key for the ways a picture is named.

    Example:
        >>> image_key(226988), image_key("COCO_val2014_000000226988.jpg"), image_key("000000226988.jpg")
        ('226988', '226988', '226988')
        >>> image_key("kitchen-7.png")
        'kitchen-7'
    """
    stem = PurePath(str(image)).stem if "." in str(image) else str(image)
    numbered = _NUMBERED.fullmatch(stem)
    return numbered.group(1) if numbered else stem


def load_ground_truth(path: str | Path, mode: str = "strict") -> GroundTruth:
    """Reads ``{"image_id": ..., "objects": [names], "captions": [texts]}`` lines.

    ``objects`` are names of instances, ``captions`` reference captions read by the same rules as generated
    ones; one of the two may be absent. ``file_name`` and further keys are allowed.

    Args:
        path: the file.
        mode: how words become categories; use the mode the captions are scored with.

    Raises:
        LvlmAttnError: unreadable file, an entry of another form, or no known object name at all.
    """
    file = read_records(path, "ground-truth file")
    objects: dict[str, frozenset[str]] = {}
    names: dict[str, str] = {}
    unknown: dict[str, None] = {}
    for record in file.records:
        value, where = record.value, f"ground-truth file {path}, line {record.line}"
        image = value.get("image_id", value.get("image"))
        listed, captions = value.get("objects", []), value.get("captions", [])
        if image is None or not ("objects" in value or "captions" in value):
            raise LvlmAttnError(f'{where}: expected {{"image_id": ..., "objects": [names]}}; mend the entry.')
        if not _are_strings(listed) or not _are_strings(captions):
            raise LvlmAttnError(f"{where}: objects and captions must be lists of strings; mend the entry.")
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


def load_captions(paths: Iterable[str | Path]) -> tuple[list[Caption], int]:
    """Reads ``{image_id, caption}`` lines or this project's ``samples.jsonl``.

    Returns:
        The captions, and how many were left out because generating them failed.

    Raises:
        LvlmAttnError: unreadable file, an entry of another form, or two captions of one picture.
    """
    captions: dict[str, Caption] = {}
    failed = 0
    for path in paths:
        for record in latest_by_id(read_records(path, "caption file").records):
            value = record.value
            if value.get("error"):
                failed += 1
                continue
            where = f"caption file {path}, line {record.line}"
            caption = caption_of(value)
            if caption is None:
                raise LvlmAttnError(
                    f"{where}: expected image_id and caption, "
                    f"found {', '.join(value) or 'nothing'}; mend the entry."
                )
            if caption.image in captions:
                raise LvlmAttnError(
                    f"{where}: a second caption of image {caption.image}; keep one per picture."
                )
            captions[caption.image] = caption
    return list(captions.values()), failed


def caption_of(value: Mapping[str, Any]) -> Caption | None:
    """The caption in one line, or None where the line has another form."""
    image = value.get("image_id", value.get("image"))
    text = next((value[key] for key in _CAPTION_KEYS if isinstance(value.get(key), str)), None)
    if image is None or text is None:
        return None
    reason = value.get("finish_reason")
    return Caption(image_key(image), text, None if reason is None else reason == "length")
