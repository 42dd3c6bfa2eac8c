"""CHAIR as a benchmark: one description per picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.chair.data import caption_of, image_key, load_ground_truth
from lvlm_attn.evals.chair.score import Caption, score_chair
from lvlm_attn.evals.chair.vocab import surface_table
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.json_text import json_values
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.pictures import PictureFolder, require_images
from lvlm_attn.evals.core.records import decode

PROMPT = "Please describe this image in detail."


class Chair:
    """Pictures to describe, with the objects in them.

    Args:
        images: the picture, or its path, by its name, in order.
        truth: the categories in each picture, by :func:`lvlm_attn.evals.chair.data.image_key` of its name.
        dataset: what the pictures are, for the run's settings.
        mode: how words become categories.
        drop_incomplete_sentence: cut captions after their last full stop before scoring.
        prompt: what to ask.
        limit: keep only the first so many pictures.

    Raises:
        LvlmAttnError: unknown mode, a limit below 1, or a picture without ground truth.
    """

    name = "chair"
    max_new_tokens = 512
    asks_yes_no = False

    def __init__(
        self,
        images: Mapping[str, Any],
        truth: Mapping[str, Iterable[str]],
        dataset: Mapping[str, Any],
        mode: str = "strict",
        drop_incomplete_sentence: bool = False,
        prompt: str = PROMPT,
        limit: int | None = None,
    ) -> None:
        surface_table(mode)
        if limit is not None and limit < 1:
            raise LvlmAttnError(f"limit is {limit}; it must be at least 1.")
        self._images = dict(list(images.items())[:limit])
        missing = [name for name in self._images if image_key(name) not in truth]
        if missing:
            raise LvlmAttnError(
                f"{len(missing)} pictures have no ground truth (first: {missing[0]}); add them to --ground-truth."
            )
        self.truth, self._dataset = truth, dict(dataset)
        self._mode, self._drop, self._prompt = mode, drop_incomplete_sentence, prompt

    @classmethod
    def from_files(
        cls,
        ground_truth: str | Path | Iterable[str | Path],
        images: str | Path,
        ids: str | Path | None = None,
        mode: str = "strict",
        drop_incomplete_sentence: bool = False,
        prompt: str = PROMPT,
        limit: int | None = None,
        show_progress: bool = False,
    ) -> Chair:
        """Reads what is in the pictures and, if given, the list of those to describe.

        ``ground_truth`` names one or several files, COCO's own among them, as for
        :func:`lvlm_attn.evals.chair.data.load_ground_truth`; pictures are found by any of their names. Without
        ``ids`` all its pictures are described, of COCO's those in the folder.

        Raises:
            LvlmAttnError: a file cannot be read, or no picture is in the folder.
        """
        truth = load_ground_truth(ground_truth, mode, show_progress)
        folder = PictureFolder(images)
        wanted = list(truth.objects) if ids is None else [image_key(item) for item in read_ids(ids)]
        paths = [folder.find(truth.file_names.get(key, key)) for key in wanted]
        if truth.is_coco and ids is None:
            there = [(key, path) for key, path in zip(wanted, paths, strict=True) if path.is_file()]
            wanted, paths = (
                ([key for key, _ in there], [path for _, path in there]) if there else (wanted, paths)
            )
        require_images(folder.path, paths)
        found = {path.name: path for path in paths}
        listed = sha256(json.dumps(wanted).encode()).hexdigest()
        dataset = {"ground_truth_sha256": truth.sha256, "ids_sha256": listed, "pictures": len(wanted)}
        return cls(found, truth.objects, dataset, mode, drop_incomplete_sentence, prompt, limit)

    def samples(self) -> list[Sample]:
        """One sample per picture."""
        return [
            Sample(
                image_key(name), image, name, self._prompt, {"objects": sorted(self.truth[image_key(name)])}
            )
            for name, image in self._images.items()
        ]

    def describe(self) -> dict[str, Any]:
        """What the pictures are and what is asked about them."""
        return {"name": self.name, **self._dataset, "prompt": self._prompt}

    def scoring(self) -> dict[str, Any]:
        """How words become categories, and whether an unfinished sentence counts."""
        return {"mode": self._mode, "drop_incomplete_sentence": self._drop}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Scores result lines."""
        captions = self.captions(lines)
        return score_chair(captions, self.truth, self._mode, self._drop, failed=len(lines) - len(captions))

    def captions(self, lines: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """The captions in result lines, failed samples left out."""
        found = (caption_of(line) for line in lines if not line.get("error"))
        return [caption for caption in found if caption is not None]


def read_ids(path: str | Path) -> list[str]:
    """Reads picture names or ids: one per line, a JSON array of them, or JSON lines with ``image_id``.

    Raises:
        LvlmAttnError: the file cannot be read or lists nothing.
    """
    text = decode(read_bytes(path, "id file"), Path(path), "id file").strip()
    entries: list[Any]
    if text.startswith(("{", "[")):
        entries = [value for _, _, value in json_values(text, Path(path), "id file")]
    else:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
    ids = []
    for entry in entries:
        value = entry.get("image_id", entry.get("image")) if isinstance(entry, dict) else entry
        if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
            raise LvlmAttnError(f"id file {path} holds {shown(entry)}, which is no picture name or id.")
        ids.append(str(value))
    if not ids:
        raise LvlmAttnError(f"id file {path} lists no pictures; put one name or id on each line.")
    return list(dict.fromkeys(ids))
