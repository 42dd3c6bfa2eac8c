"""Training pictures drawn once and kept on disk, so that no training step waits for the artwork."""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lvlm_attn.toy.render import Composition, patch_labels
from lvlm_attn.toy.scene import composition, describe
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.views import draw_view

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class PoolSpec:
    """Which training scenes a pool holds.

    Attributes:
        start: Index of the first scene in the train split (curriculum pools lie after the public 30,000).
        count: How many scenes.
        counts: Smallest and largest number of objects in each.
        classes: Use only the first so many categories; None for all, drawn by context.
        views: Whether scenes are seen through crops, masks and blur (``views.draw_view``).
    """

    start: int
    count: int
    counts: tuple[int, int] = (2, 5)
    classes: int | None = None
    views: bool = False


#: The pools of the training run: for the vision tower, for the curriculum, and for everything after it. Scenes that
#: trained the vision tower are not reused for the language model, which should meet features as fresh as at test time.
POOLS = MappingProxyType(
    {
        "vision": PoolSpec(0, 14_000),
        "one-of-8": PoolSpec(100_000, 1_500, (1, 1), 8),
        "one": PoolSpec(110_000, 3_000, (1, 1), 64),
        "few": PoolSpec(120_000, 3_000, (1, 3)),
        "full": PoolSpec(14_000, 12_000),
    }
)

#: Pools of later stages: views for the vision tower, and for the language model's questions about views; more pictures.
LATER_POOLS = MappingProxyType(
    {
        "views": PoolSpec(130_000, 10_000, views=True),
        "glimpses": PoolSpec(145_000, 5_000, views=True),
        "more": PoolSpec(150_000, 24_000),
    }
)

_VIEW_SALT = 7  # views draw from a generator of their own
_CLEAR = 0.3  # share of an object that a view must show for it to count; of less, nothing is asked


@dataclass(frozen=True)
class Fact:
    """What the text samples need to know of one object: its name, and its middle as shares of width and height."""

    name: str
    x: float
    y: float
    area: float
    visible: float
    contrast: float


@dataclass(frozen=True)
class SceneFacts:
    """What the text samples need to know of one scene; objects from the back to the front.

    Attributes:
        context: The scene's context.
        objects: What is in the picture.
        view: What the picture is, a key of ``views.KINDS``.
        unsure: Names of objects that a view shows a little of; nothing is asked about them.
    """

    context: str
    objects: tuple[Fact, ...]
    view: str = "plain"
    unsure: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pool:
    """Pictures in memory-mapped arrays.

    Attributes:
        pixels: (scenes, size, size, 3) uint8.
        labels: (scenes, patches) int8 category of each patch, ``len(vocabulary())`` for background.
        facts: One entry per scene.
    """

    pixels: Array
    labels: Array
    facts: tuple[SceneFacts, ...]


def scene_facts(split: str, index: int, spec: PoolSpec, patch: int) -> tuple[Array, Array, SceneFacts]:
    """Draws one scene: its pixels, its patch labels and its facts."""
    made = composition(split, index, counts=spec.counts, classes=spec.classes)
    if spec.views:
        return _seen_facts(np.random.default_rng([_VIEW_SALT, index]), made, patch)
    names = vocabulary()
    ids = np.array([names.index(item.name) for item in made.placements])
    labels = patch_labels(made.owner, ids, patch, background=len(names)).astype(np.int8)
    size = made.owner.shape[0]
    facts = []
    for item in describe(split, index, made).objects:
        x0, y0, x1, y1 = item.box
        area = (x1 - x0) * (y1 - y0) / size**2
        facts.append(
            Fact(item.name, (x0 + x1) / 2 / size, (y0 + y1) / 2 / size, area, item.visible, item.contrast)
        )
    return made.pixels, labels, SceneFacts(made.context, tuple(facts))


def _seen_facts(rng: np.random.Generator, made: Composition, patch: int) -> tuple[Array, Array, SceneFacts]:
    """A view of a scene: its pixels, its patch labels, and which objects it shows."""
    view = draw_view(rng, made.pixels, made.owner)
    names, size = vocabulary(), made.owner.shape[0]
    ids = np.array([names.index(item.name) for item in made.placements])
    labels = patch_labels(view.owner, ids, patch, background=len(names)).astype(np.int8)
    shown: list[Fact] = []
    partly: set[str] = set()
    for index, item in enumerate(made.placements):
        share = float(view.kept[made.owner == index].mean())
        ys, xs = np.nonzero(view.owner == index)
        if share >= _CLEAR and len(xs):
            area = float((np.ptp(xs) + 1) * (np.ptp(ys) + 1) / size**2)
            x, y = float(xs.mean() / size), float(ys.mean() / size)
            shown.append(Fact(item.name, x, y, area, share * made.visible[index], item.contrast))
        elif share > 0:
            partly.add(item.name)
    unsure = tuple(sorted(partly - {fact.name for fact in shown}))
    return view.pixels, labels, SceneFacts(made.context, tuple(shown), view.kind, unsure)


def build_pool(spec: PoolSpec, folder: Path, patch: int, workers: int = 1) -> Pool:
    """Draws a pool into ``folder``, or opens it when it is already complete there.

    Args:
        spec: Which scenes.
        folder: Where the arrays are kept; made when absent.
        patch: Side of a patch in pixels.
        workers: Processes that draw.
    """
    facts_file = folder / "facts.json"
    if not facts_file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _draw(spec, folder, patch, workers)
    raw = json.loads(facts_file.read_text())
    facts = tuple(
        SceneFacts(context, tuple(Fact(*item) for item in items), view, tuple(unsure))
        for context, items, view, unsure in raw
    )
    pixels = np.load(folder / "pixels.npy", mmap_mode="r")
    return Pool(pixels, np.load(folder / "labels.npy", mmap_mode="r"), facts)


def _draw(spec: PoolSpec, folder: Path, patch: int, workers: int) -> None:
    tasks = [(spec, spec.start + offset, patch) for offset in range(spec.count)]
    first, labels, _ = _draw_one(tasks[0])
    pixels_map = np.lib.format.open_memmap(folder / "pixels.npy", "w+", np.uint8, (spec.count, *first.shape))
    all_labels = np.empty((spec.count, *labels.shape), np.int8)
    raw: list[Any] = []
    with multiprocessing.get_context("fork").Pool(workers) as processes:
        drawn = processes.imap(_draw_one, tasks, chunksize=64)
        for row, (pixels, labels, facts) in enumerate(
            tqdm(drawn, total=spec.count, desc=f"draw {folder.name}")
        ):
            pixels_map[row], all_labels[row] = pixels, labels
            items = [[f.name, f.x, f.y, f.area, f.visible, f.contrast] for f in facts.objects]
            raw.append([facts.context, items, facts.view, facts.unsure])
    pixels_map.flush()
    np.save(folder / "labels.npy", all_labels)
    (folder / "facts.json").write_text(json.dumps(raw))


def _draw_one(task: tuple[PoolSpec, int, int]) -> tuple[Array, Array, SceneFacts]:
    spec, index, patch = task
    return scene_facts("train", index, spec, patch)
