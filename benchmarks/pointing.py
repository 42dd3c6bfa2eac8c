"""Do attention maps point at what a word names? Every view on the toy, whose pictures say where objects are.

The toy captions test scenes. For the first mention of every object that is in the picture, each view gives a map of the
word: is its highest place in a box of the object, how much of it lies there, and does it order regions as hiding them
orders the word's logit? Nothing is tuned. Then words that name what is there against words that do not.

    python -m benchmarks.pointing [--scenes 200] [--keep words.jsonl] [--save]

``--keep`` writes the words of every scene to a file, and takes those that it holds from there. ``--save`` writes the
tables in ``docs/pointing.md`` anew, between their two markers; the prose is written by hand.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pointing_tables import tables

PROMPT, NEUTRAL = "Describe this image.", "Write a general description of the image."
PAGE = Path(__file__).parent.parent / "docs" / "pointing.md"
BEGIN, END = "<!-- tables: python -m benchmarks.pointing -->", "<!-- end of tables -->"
CELLS = 2  # patches along a side of the regions that are hidden


@dataclass(frozen=True)
class Recorded:
    """The maps of one caption.

    Attributes:
        maps: rows of the answer's tokens, every layer and head.
        every: rows of all positions, the mean head of every layer.
        neutral: the last row of a prompt that asks for nothing in particular.
    """

    maps: Any
    every: Any
    neutral: Any


def _last(maps: Any) -> Any:
    return maps.layer(maps.layers[-1])


def _by_columns(maps: Any) -> Any:
    return replace(maps, sink_scores={}).view("no_sinks")


VIEWS: dict[str, Callable[[Recorded], Any]] = {
    "raw, last layer": lambda found: _last(found.maps),
    "raw": lambda found: found.maps,
    "sinks removed, last layer": lambda found: _by_columns(_last(found.maps)),
    "sinks removed": lambda found: _by_columns(found.maps),
    "sinks removed (VAR's score)": lambda found: found.maps.view("no_sinks"),
    "minus the mean over tokens, last layer": lambda found: _last(found.maps).view("relative"),
    "minus the mean over tokens": lambda found: found.maps.view("relative"),
    "divided by a neutral prompt, last layer": lambda found: _last(found.maps).view(
        "contrast", neutral=_last(found.neutral)
    ),
    "divided by a neutral prompt": lambda found: found.maps.view("contrast", neutral=found.neutral),
    "rollout": lambda found: found.every.view("rollout"),
}
"""Name in the table, and the maps it shows; the mean over all layers where none is named, always over all heads."""


@dataclass(frozen=True)
class Word:
    """An object that a caption names.

    Attributes:
        scene: which picture.
        name: the category.
        is_there: whether it is in the picture.
        hits: by view, whether the highest place lies in a box; of the area alone under `"area"`.
        energies: by view, the share that lies in the boxes.
        orders: by view, the rank correlation with what hiding regions does to the word's logit.
        numbers: what else is compared between words that are there and words that are not.
    """

    scene: int
    name: str
    is_there: bool
    hits: dict[str, float]
    energies: dict[str, float]
    orders: dict[str, float]
    numbers: dict[str, float]


def recorded(model: Any, processor: Any, picture: Any) -> Recorded:
    """Captions a picture and records it: the caption is the model's own, and followed the second time."""
    import lvlm_attn as la

    def run(rows: str, prompt: str, **more: Any) -> Any:
        reduce = "heads" if rows == "all" else None
        with la.wrap(
            model, la.record(rows=rows, reduce=reduce, sinks=rows == "generated"), processor=processor
        ) as lvlm:
            lvlm.generate(
                images=[picture], prompts=[prompt], **{"max_new_tokens": 64, "do_sample": False} | more
            )
            return lvlm.maps

    maps = run("generated", PROMPT)
    answer = maps.ids[:, maps.ids.shape[1] - len(maps) :]
    return Recorded(maps, run("all", PROMPT, answers=answer), run("last", NEUTRAL, max_new_tokens=1))


def words_of(found: Recorded, objects: Any) -> list[tuple[str, tuple[str, int], bool]]:
    """The first mention of every category in a caption: category, key of its word, whether it is there."""
    from lvlm_attn.evals.chair.marking import marked
    from lvlm_attn.evals.chair.vocab import read_caption
    from lvlm_attn.maps.words import count_word

    caption = found.maps.meta["answers"][0]
    pieces = marked(caption, {item.name for item in objects})
    mentions = iter(read_caption(caption).mentions)
    seen: dict[str, tuple[str, tuple[str, int], bool]] = {}
    before = ""
    for text, kind in pieces:
        if kind != "text":
            name = next(
                mention.node for mention in mentions if mention.surface == " ".join(text.lower().split())
            )
            seen.setdefault(name, (name, (text, count_word([before], text) + 1), kind == "there"))
        before += text
    return list(seen.values())


def measured(scene: Any, found: Recorded, divergence: Callable[[int], float]) -> list[Word]:
    """Every object word of a caption."""
    from lvlm_attn.maps.statistics import entropies, image_mass, pointing

    shown = {name: view(found) for name, view in VIEWS.items()}
    words = []
    for name, key, is_there in words_of(found, scene.objects):
        one = found.maps[key]
        boxes = [item.box for item in scene.objects if item.name == name]
        hits, energies, orders = {}, {}, {}
        if is_there:
            check = found.maps.occlude(key, cells=CELLS, batch=64)
            hidden = np.kron(check.drop, np.ones((CELLS * 12, CELLS * 12)))
            for view, maps in shown.items():
                point = pointing(maps[key].pixels(), boxes)
                hits[view], energies[view] = float(point.is_hit), point.energy
                orders[view] = _order(maps[key].grid()[0], check.drop)
            point = pointing(hidden, boxes)
            hits["drop of the logit"], energies["drop of the logit"] = float(point.is_hit), point.energy
            hits["even map"] = energies["even map"] = point.area
        numbers = {
            "weight on the image (%)": 100 * float(image_mass(one).mean()),
            "the same, last layer (%)": 100 * float(image_mass(_last(one)).mean()),
            "entropy on the image (nats)": float(entropies(one, on_image=True).mean()),
            "T-VHD": divergence(int(one.targets[0, 0])),
        }
        words.append(Word(scene.index, name, is_there, hits, energies, orders, numbers))
    return words


def _order(grid: Any, drop: Any) -> float:
    from lvlm_attn.maps.statistics import rank_correlation

    rows, cols = drop.shape
    regions = grid.reshape(rows, CELLS, cols, CELLS).sum((1, 3))
    return rank_correlation(regions, drop)


def _kept(path: Path | None) -> dict[int, list[Word]]:
    """The words of every scene in a file of an earlier run; a last line that was cut short is left out."""
    found: dict[int, list[Word]] = {}
    for line in path.read_text("utf-8").splitlines(keepends=True) if path and path.exists() else ():
        if line.endswith("\n"):
            scene, words = json.loads(line)
            found[scene] = [Word(**word) for word in words]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--keep", type=Path, help="a file for the words of every scene, to go on with")
    parser.add_argument("--save", action="store_true", help="write the tables into docs/pointing.md")
    options = parser.parse_args()

    import lvlm_attn as la
    from lvlm_attn import toy
    from lvlm_attn.evals.core.report import markdown, show
    from lvlm_attn.prompts.chat import encode_prompts

    model, processor = la.load("toy")
    words: list[Word] = []
    kept = _kept(options.keep)
    for scene in toy.scenes(options.split, options.scenes):
        if scene.index in kept:
            words += kept[scene.index]
            continue
        picture = scene.image
        found = recorded(model, processor, picture)
        inputs = encode_prompts(processor, [picture], [PROMPT])
        length = inputs["input_ids"].shape[1]

        def divergence(target: int, found: Any = found, inputs: Any = inputs, length: int = length) -> float:
            so_far = found.maps.ids[:, length:target]
            return float(la.vhd(model, inputs, generated=so_far if so_far.shape[1] else None).t_vhd()[0])

        new = measured(scene, found, divergence)
        words += new
        if options.keep:
            with options.keep.open("a", encoding="utf-8") as file:
                file.write(json.dumps((scene.index, [asdict(word) for word in new])) + "\n")
        if (scene.index + 1) % 20 == 0:
            print(f"{scene.index + 1} scenes, {len(words)} words", flush=True)
    made = tables(words, list(VIEWS), f"{options.scenes} {options.split} scenes")
    for table in made:
        print()
        show(table)
    if options.save:
        text = PAGE.read_text("utf-8")
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        PAGE.write_text(before + BEGIN + "\n" + "\n".join(map(markdown, made)) + END + after, "utf-8")


if __name__ == "__main__":
    main()
