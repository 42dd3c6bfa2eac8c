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
from lvlm_attn.evals.core.finished import names_of
from lvlm_attn.evals.core.json_text import json_values
from lvlm_attn.evals.core.jsonio import read_bytes
from lvlm_attn.evals.core.pictures import PictureFolder, require_images
from lvlm_attn.evals.core.records import decode
from lvlm_attn.evals.core.spread import mean_and_spread

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
        limit: keep only the first so many pictures, of each subset.
        subsets: the subset of each picture by its key, where scores are wanted for each and over all.

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
        subsets: Mapping[str, str] | None = None,
    ) -> None:
        surface_table(mode)
        if limit is not None and limit < 1:
            raise LvlmAttnError(f"limit is {limit}; it must be at least 1.")
        self._subsets, self.limit = dict(subsets or {}), limit
        self._images = dict(_first_of_each(images, self._subsets, limit))
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
        ids: str | Path | Sequence[str | Path] | None = None,
        mode: str = "strict",
        drop_incomplete_sentence: bool = False,
        prompt: str = PROMPT,
        limit: int | None = None,
        show_progress: bool = False,
    ) -> Chair:
        """Reads what is in the pictures and, if given, the list of those to describe.

        ``ground_truth`` names one or several files, COCO's own among them, as for
        :func:`lvlm_attn.evals.chair.data.load_ground_truth`; pictures are found by any of their names. Without
        ``ids`` all its pictures are described, of COCO's those in the folder. Several lists of ids are subsets, each
        scored by itself as well.

        Raises:
            LvlmAttnError: a file cannot be read, no picture is in the folder, or two lists share a picture.
        """
        truth = load_ground_truth(ground_truth, mode, show_progress)
        folder = PictureFolder(images)
        subsets = {} if ids is None else read_subsets([ids] if isinstance(ids, str | Path) else ids)
        wanted = list(truth.objects) if ids is None else list(subsets)
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
        several = subsets if len(set(subsets.values())) > 1 else {}
        return cls(found, truth.objects, dataset, mode, drop_incomplete_sentence, prompt, limit, several)

    def samples(self) -> list[Sample]:
        """One sample per picture."""
        return [
            Sample(image_key(name), image, name, self._prompt, self._fields(image_key(name)))
            for name, image in self._images.items()
        ]

    def _fields(self, key: str) -> dict[str, Any]:
        subset = {"subset": self._subsets[key]} if key in self._subsets else {}
        return {"objects": sorted(self.truth[key]), **subset}

    def describe(self) -> dict[str, Any]:
        """What the pictures are and what is asked about them."""
        return {"name": self.name, **self._dataset, "prompt": self._prompt}

    def scoring(self) -> dict[str, Any]:
        """How words become categories, and whether an unfinished sentence counts."""
        return {"mode": self._mode, "drop_incomplete_sentence": self._drop}

    def score(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Scores result lines, all together and by subset."""
        found = self._scored(lines)
        names = list(dict.fromkeys(self._subsets.values()))
        parts = {name: [line for line in lines if line.get("subset") == name] for name in names}
        scored = {
            name: self._scored(part)
            for name, part in parts.items()
            if any(not line.get("error") for line in part)
        }
        return (
            found
            if len(scored) < 2
            else {**found, "per_subset": scored, "subsets": mean_and_spread([*scored.values()])}
        )

    def _scored(self, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        captions = self.captions(lines)
        return score_chair(captions, self.truth, self._mode, self._drop, failed=len(lines) - len(captions))

    def captions(self, lines: Sequence[Mapping[str, Any]]) -> list[Caption]:
        """The captions in result lines, failed samples left out."""
        found = (caption_of(line) for line in lines if not line.get("error"))
        return [caption for caption in found if caption is not None]


def _first_of_each(
    images: Mapping[str, Any], subsets: Mapping[str, str], limit: int | None
) -> Iterable[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for name, image in images.items():
        subset = subsets.get(image_key(name), "")
        seen[subset] = seen.get(subset, 0) + 1
        if limit is None or seen[subset] <= limit:
            yield name, image


def read_subsets(paths: Sequence[str | Path]) -> dict[str, str]:
    """The keys of the pictures in lists of ids, each with the name of its list.

    Raises:
        LvlmAttnError: a list cannot be read, or two share a picture.
    """
    names = names_of([Path(path).with_suffix("") for path in paths])
    found: dict[str, str] = {}
    for path, name in zip(paths, names, strict=True):
        for key in dict.fromkeys(image_key(item) for item in read_ids(path)):
            if key in found:
                raise LvlmAttnError(
                    f"picture {key} is in two lists of ids, {found[key]} and {name}; subsets must be disjoint."
                )
            found[key] = name
    return found


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
