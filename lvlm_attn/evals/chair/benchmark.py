"""CHAIR as a benchmark: one description per picture."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.data import caption_of, image_key, load_ground_truth
from lvlm_attn.evals.chair.score import Caption, score_chair
from lvlm_attn.evals.chair.vocab import surface_table
from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.pictures import require_images

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
        ground_truth: str | Path,
        images: str | Path,
        ids: str | Path | None = None,
        mode: str = "strict",
        drop_incomplete_sentence: bool = False,
        prompt: str = PROMPT,
        limit: int | None = None,
    ) -> Chair:
        """Reads a ground-truth file and, if given, the list of pictures to describe.

        Raises:
            LvlmAttnError: a file cannot be read, or no picture is in the folder.
        """
        truth = load_ground_truth(ground_truth, mode)
        folder = Path(images)
        wanted = list(truth.objects) if ids is None else [image_key(item) for item in read_ids(ids)]
        if not folder.is_dir():
            require_images(folder, [])
        by_key = {image_key(path.name): path for path in sorted(folder.iterdir()) if path.is_file()}
        found = {}
        for key in wanted:
            name = truth.file_names.get(key, key)
            path = folder / name if (folder / name).is_file() else by_key.get(key, folder / name)
            found[path.name] = path
        require_images(folder, found.values())
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
    text = read_bytes(path, "id file").decode("utf-8-sig", errors="replace").strip()
    entries: list[Any]
    try:
        loaded = json.loads(text)
        entries = loaded if isinstance(loaded, list) else [loaded]
    except json.JSONDecodeError:
        entries = [line.strip() for line in text.splitlines() if line.strip()]
        if entries and entries[0].startswith("{"):
            try:
                entries = [json.loads(line) for line in entries]
            except json.JSONDecodeError as error:
                raise LvlmAttnError(
                    f"id file {path} is not valid JSON lines ({error.msg}); mend it."
                ) from error
    ids = []
    for entry in entries:
        value = entry.get("image_id", entry.get("image")) if isinstance(entry, dict) else entry
        if not isinstance(value, str | int) or value == "":
            raise LvlmAttnError(f"id file {path} holds {str(entry)[:40]!r}, which is no picture name or id.")
        ids.append(str(value))
    if not ids:
        raise LvlmAttnError(f"id file {path} lists no pictures; put one name or id on each line.")
    return list(dict.fromkeys(ids))
