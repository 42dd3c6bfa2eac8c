"""Builds POPE questions from lists of objects, with an explicit seed.

The protocol (Li et al. 2023, section 4.2, and the released generator of RUCAIBox/POPE): keep pictures with at
least ``k`` objects, draw ``images`` of them, and for each picture ask ``k`` times about a listed object and
then about an absent one. Absent objects are drawn at random, by overall frequency, or by co-occurrence with
the object just asked. Frequencies are counted over the drawn pictures only, ties keep the order of first
sight, and no picture is asked the same thing twice. Where the released generator is unseeded and turns
"image" into "imange" before vowels, this one takes a seed and writes the article alone.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.coco import CocoObjects
from lvlm_attn.evals.core.records import read_records
from lvlm_attn.evals.pope.data import CATEGORIES, Question


@dataclass(frozen=True)
class ImageObjects:
    """A picture and the objects in it, in listed order."""

    image: str
    objects: tuple[str, ...]


def read_objects(path: str | Path) -> list[ImageObjects]:
    """Reads ``{"image": name, "objects": [name, ...]}`` entries; further keys are ignored.

    Raises:
        LvlmAttnError: the file is unreadable or an entry has another form.
    """
    file = read_records(path, "object file")
    found = []
    for record in file.records:
        image, objects = record.value.get("image"), record.value.get("objects")
        if not isinstance(image, str) or not isinstance(objects, list):
            raise LvlmAttnError(
                f'object file {path}, {record.where}: expected {{"image": name, "objects": [names]}}; '
                "correct the entry."
            )
        if not all(isinstance(name, str) and name for name in objects):
            raise LvlmAttnError(f"object file {path}, {record.where}: objects must be non-empty names.")
        found.append(ImageObjects(image, tuple(dict.fromkeys(objects))))
    return found


def objects_of_coco(coco: CocoObjects) -> list[ImageObjects]:
    """The objects of COCO's pictures, as POPE asks about them: annotated instances first, then those of captions.

    Source: Li et al. 2023, section 4.2, which takes CHAIR's ground truth of val2014.
    """
    return [
        ImageObjects(coco.file_names.get(image, image), tuple(coco.objects(image)))
        for image in coco.pictures()
    ]


def build_questions(
    pictures: Iterable[ImageObjects],
    k: int = 3,
    images: int | None = None,
    seed: int = 0,
    splits: Sequence[str] = CATEGORIES,
) -> dict[str, list[Question]]:
    """Builds the questions of each split.

    Args:
        pictures: the pictures with their objects.
        k: questions about present objects per picture, and as many about absent ones.
        images: how many pictures to draw; None takes every picture with at least ``k`` objects, in order.
        seed: seeds the choice of pictures and the random split; equal seeds give equal files.
        splits: which of ``random``, ``popular`` and ``adversarial`` to build.

    Returns:
        For each split ``2 * k`` questions per picture, answers yes, no, yes, no, ..., ids from 1.

    Raises:
        LvlmAttnError: ``k`` or ``images`` below 1, unknown split, too few pictures, a picture named twice, or
            a picture that holds every known object.

    Example:
        >>> pictures = [ImageObjects("a.jpg", ("cat", "dog")), ImageObjects("b.jpg", ("cat", "oven"))]
        >>> build_questions(pictures, k=1, splits=["popular"])["popular"][1].text
        'Is there an oven in the image?'
    """
    if k < 1 or (images is not None and images < 1):
        raise LvlmAttnError(f"k is {k} and images is {images}; both must be at least 1.")
    for split in splits:
        if split not in CATEGORIES:
            raise LvlmAttnError(f"no POPE split {split!r}; choose from {', '.join(CATEGORIES)}.")
    chosen = _chosen(pictures, k, images, seed)
    by_frequency = _descending(Counter(name for item in chosen for name in item.objects))
    neighbours = _neighbours(chosen)
    built: dict[str, list[Question]] = {}
    for split in splits:
        generator = random.Random(f"pope {split} {seed}")
        questions: list[Question] = []
        for item in chosen:
            asked: set[str] = set()
            for present in item.objects[:k]:
                asked.add(present)
                ranked = {"popular": by_frequency, "adversarial": neighbours.get(present, [])}.get(split, [])
                excluded = asked | set(item.objects)
                absent = next((name for name in ranked if name not in excluded), None)
                if absent is None:
                    absent = _draw(by_frequency, excluded, generator, item.image)
                asked.add(absent)
                questions.append(_ask(split, len(questions) + 1, item.image, present, "yes"))
                questions.append(_ask(split, len(questions) + 1, item.image, absent, "no"))
        built[split] = questions
    return built


def usable(pictures: Iterable[ImageObjects], k: int) -> list[ImageObjects]:
    """The pictures with at least `k` kinds of objects."""
    return [item for item in pictures if len(set(item.objects)) >= k]


def _chosen(pictures: Iterable[ImageObjects], k: int, images: int | None, seed: int) -> list[ImageObjects]:
    """The pictures to ask about: those with at least `k` objects, or a draw of them."""
    listed = [ImageObjects(item.image, tuple(dict.fromkeys(item.objects))) for item in pictures]
    repeated = [name for name, times in Counter(item.image for item in listed).items() if times > 1]
    if repeated:
        raise LvlmAttnError(f"picture {repeated[0]} is listed more than once; list each picture once.")
    listed = usable(listed, k)
    wanted = len(listed) if images is None else images
    if not listed or len(listed) < wanted:
        raise LvlmAttnError(
            f"{len(listed)} pictures have at least {k} objects but {max(wanted, 1)} are wanted; "
            "ask for fewer images or a smaller k."
        )
    return listed if images is None else random.Random(f"pope pictures {seed}").sample(listed, images)


def _descending(counts: Mapping[str, int]) -> list[str]:
    return sorted(counts, key=lambda name: -counts[name])


def _neighbours(pictures: Sequence[ImageObjects]) -> dict[str, list[str]]:
    together: dict[str, Counter[str]] = {}
    for item in pictures:
        for name in item.objects:
            together.setdefault(name, Counter()).update(other for other in item.objects if other != name)
    return {name: _descending(counts) for name, counts in together.items()}


def _draw(names: Sequence[str], excluded: set[str], generator: random.Random, image: str) -> str:
    left = [name for name in names if name not in excluded]
    if not left:
        raise LvlmAttnError(
            f"no absent object is left to ask about picture {image}; give more pictures with other objects, "
            "or a smaller k."
        )
    return generator.choice(left)


def _ask(split: str, number: int, image: str, name: str, label: str) -> Question:
    text = f"Is there {article(name)} {name} in the image?"
    return Question(f"{split}:{number}", number, image, text, "yes" if label == "yes" else "no", split)


def article(name: str) -> str:
    """Returns "an" before a, e, i, o, u and "a" otherwise, plural or not, as POPE does."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def question_row(question: Question) -> dict[str, object]:
    """The four keys of a POPE question file."""
    return {
        "question_id": question.question_id,
        "image": question.image,
        "text": question.text,
        "label": question.label,
    }
