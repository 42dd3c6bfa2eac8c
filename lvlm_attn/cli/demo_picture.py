"""What a method does to one picture, as text: sinks, attention before and after VAR, heads that VHR chooses."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lvlm_attn.hooks.var import VAR
    from lvlm_attn.hooks.vhr import VHR
    from lvlm_attn.toy.scene import Scene

_SHADES = " .:-=+*#%@"
SINK = "X"
SHADES_TOLD = (
    f"attention, none to most: blank {' '.join(_SHADES.strip())}; {SINK}: a sink, its share is below"
)
_LOOK_AT = 12  # so many scenes of the split are looked through for one that shows something


@dataclass(frozen=True)
class Moved:
    """Attention of the word of a question, in the head, where VAR moves most.

    Attributes:
        scene: The picture.
        name: The object that is asked about.
        word: The word whose attention it is.
        layer: Which layer.
        head: Which head.
        before: (keys,) weights of the bare model.
        after: (keys,) weights under VAR.
        is_patch: (keys,).
        is_sink: (keys,).
        answers: What is answered to the question, by the bare model and under VAR.
    """

    scene: Scene
    name: str
    word: str
    layer: int
    head: int
    before: Tensor
    after: Tensor
    is_patch: Tensor
    is_sink: Tensor
    answers: tuple[str, str]

    @property
    def amount(self) -> float:
        """How much left the sinks."""
        return float(self.before[self.is_sink].sum() - self.after[self.is_sink].sum())


def most_moved(model: Any, processor: Any, var: VAR, split: str, count: int) -> Moved | None:
    """Looks through scenes for the word and the head in which VAR moves most; None if it moves nothing."""
    from lvlm_attn.toy import scenes

    found = [
        moved
        for scene in scenes(split, min(count, _LOOK_AT))
        for moved in _moves(model, processor, var, scene, min(item.name for item in scene.objects))
    ]
    best = max(found, key=lambda item: item.amount, default=None)
    return best if best is not None and best.amount > 0 else None


def _moves(model: Any, processor: Any, var: VAR, scene: Scene, name: str) -> list[Moved]:
    from lvlm_attn.hooks.record import record
    from lvlm_attn.toy.prompts import pope_question
    from lvlm_attn.wrapping import target_of, wrap

    fitted = var.fit(target_of(model, processor))
    acting = cast("tuple[int, ...]", fitted.layers)
    maps, answers = [], []
    for items in ((), (var,)):
        with wrap(model, *items, record(rows="prompt", sinks=True), processor=processor) as lvlm:
            answers += lvlm.generate(images=[scene.image], prompts=[pope_question(name)], max_new_tokens=4)
            maps.append(lvlm.maps)
    before, after = maps
    said = (answers[0].strip(), answers[1].strip())
    found = []
    for layer, weights in before.weights.items():
        if layer not in acting:
            continue
        rows, keys = weights.shape[2:]
        is_patch = before.layout.is_patch[0, :keys]
        is_sink = before.sink_scores[layer][0, :keys] >= fitted.tau
        if not bool((is_patch & is_sink).any()):
            continue
        first = int(is_patch.nonzero().max()) + 1
        left = (weights[0] - after.weights[layer][0])[:, first:, is_sink].sum(-1)
        head, row = divmod(int(left.argmax()), rows - first)
        old, new = (one.weights[layer][0, head, first + row] for one in maps)
        word = before.tokens[first + row].strip()
        found.append(Moved(scene, name, word, int(layer), head, old, new, is_patch, is_sink, said))
    return found


def drawn(moved: Moved) -> list[str]:
    """The picture's objects, and the attention on its patches before and after VAR, side by side."""
    count = int(moved.is_patch.sum())
    side = math.isqrt(count)
    sinks = moved.is_sink[moved.is_patch]
    most = float(torch.cat([row[moved.is_patch][~sinks] for row in (moved.before, moved.after)]).max())
    letters = letters_at(moved.scene, side)
    panels = [
        [letters.get(at, ".") for at in range(count)],
        *(_shaded(row[moved.is_patch], sinks, most) for row in (moved.before, moved.after)),
    ]
    width = 2 * side - 1
    heads = ("objects", "before VAR", "after VAR")
    lines = ["   ".join(head.ljust(width) for head in heads).rstrip()]
    for row in range(side):
        cells = (" ".join(panel[row * side : (row + 1) * side]) for panel in panels)
        lines.append(" | ".join(cells).rstrip())
    return lines


def shares(moved: Moved) -> list[str]:
    """Where the attention lies before and after VAR, in words."""
    parts = {
        "first token": moved.is_sink & ~moved.is_patch,
        f"patches {SINK}": moved.is_sink & moved.is_patch,
        "others": moved.is_patch & ~moved.is_sink,
        "words": ~moved.is_patch & ~moved.is_sink,
    }
    return [
        f"{name} {float(moved.before[mask].sum()):.0%} -> {float(moved.after[mask].sum()):.0%}"
        for name, mask in parts.items()
    ]


def legend(moved: Moved) -> str:
    """Which letter stands for which object."""
    shown = set(letters_at(moved.scene, math.isqrt(int(moved.is_patch.sum()))).values())
    return ", ".join(f"{letter} {name}" for name, letter in names(moved.scene).items() if letter in shown)


def chosen_heads(
    model: Any, processor: Any, vhr: VHR, scene: Scene, name: str
) -> list[tuple[int, list[int]]]:
    """Per layer that VHR acts in, the heads it chooses for a question about one scene."""
    from lvlm_attn.toy.prompts import pope_question
    from lvlm_attn.wrapping import wrap

    with wrap(model, vhr, processor=processor) as lvlm:
        lvlm.generate(images=[scene.image], prompts=[pope_question(name)], max_new_tokens=1)
        rows = lvlm.report().rows[0]
    return [(int(row["layer"]), [int(head) for head in row["most_often"]]) for row in rows]


def names(scene: Scene) -> dict[str, str]:
    """A letter for each kind of object: its first as a capital, for a second one small, else another of its name."""
    given: dict[str, str] = {}
    for item in scene.objects:
        letters = item.name.replace(" ", "")
        wanted = (letters[0].upper(), *letters, *string.ascii_letters)
        if item.name not in given:
            given[item.name] = next(
                letter for letter in wanted if letter not in given.values() and letter != SINK
            )
    return given


def letters_at(scene: Scene, side: int) -> dict[int, str]:
    """The letter of the object that covers most of each patch; every object has the patch that it covers most."""
    size, letters = scene.image.width / side, names(scene)
    covered: list[tuple[float, int, int]] = []
    for place, item in enumerate(scene.objects):
        for at in range(side * side):
            row, column = divmod(at, side)
            wide = min(item.box[2], (column + 1) * size) - max(item.box[0], column * size)
            high = min(item.box[3], (row + 1) * size) - max(item.box[1], row * size)
            if wide > 0 and high > 0:
                covered.append((wide * high, place, at))
    covered.sort(reverse=True)
    found: dict[int, int] = {}
    for place in range(len(scene.objects) - 1, -1, -1):
        best = next((at for _, other, at in covered if other == place and at not in found), None)
        if best is not None:
            found[best] = place
    for _, place, at in covered:
        found.setdefault(at, place)
    return {at: letters[scene.objects[place].name] for at, place in found.items()}


def _shaded(weights: Tensor, sinks: Tensor, most: float) -> list[str]:
    steps = (weights / max(most, 1e-9) * len(_SHADES)).long().clamp(0, len(_SHADES) - 1)
    return [SINK if sink else _SHADES[step] for step, sink in zip(steps.tolist(), sinks.tolist())]
