"""What methods do, pair by pair and row by row, for the oracle of `tests.families.oracle`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.families.oracle import Case, Edit, Walk, plain, walk
from tests.oracle import Truth, VarRule, VhrRule, _choose, redistributed, sinks_of

Pair = Callable[[Case, int, int], bool]


def masked(
    case: Case,
    layers: Sequence[int],
    keep: Pair | None = None,
    opened: Pair | None = None,
    strength: float = 1,
) -> Edit:
    """Weights over what the model's mask allows and `keep` keeps, and over what `opened` opens, times a strength."""
    size = range(len(case))
    kept = torch.tensor([[keep is None or i == j or keep(case, i, j) for j in size] for i in size])
    more = torch.tensor([[opened is not None and opened(case, i, j) for j in size] for i in size])

    def edit(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        if layer not in layers:
            return plain(layer, scores, may_read, stream)
        own = may_read & kept
        factor = own.double() + (more & ~own).double() * strength
        power = (scores - scores.amax(-1, keepdim=True)).exp() * factor
        return power / power.sum(-1, keepdim=True)

    return edit


def is_text(case: Case, place: int) -> bool:
    return not case.is_image(place)


def self_prefix(case: Case, i: int, j: int) -> bool:
    return not (case.is_image(i) and case.is_image(j))


def only_self(case: Case, i: int, j: int) -> bool:
    return not case.is_image(i)


def near(window: int) -> Pair:
    def keep(case: Case, i: int, j: int) -> bool:
        return not (case.is_image(i) and case.is_image(j)) or abs(i - j) < window

    return keep


def around(half: int) -> Pair:
    """Patches attend to patches of their block that are near in row and column."""
    known: dict[int, dict[int, tuple[int, int, int, int]]] = {}

    def places(case: Case) -> dict[int, tuple[int, int, int, int]]:
        found = known.setdefault(id(case), {})
        for number, blocks in enumerate(() if found else case.blocks):
            patches = iter(n for n in range(case.prompt) if case.image[n] == number and case.is_patch(n))
            for index, (rows, cols) in enumerate(blocks):
                for row in range(rows):
                    for col in range(cols):
                        found[next(patches)] = (number, index, row, col)
            assert next(patches, None) is None
        return found

    def keep(case: Case, i: int, j: int) -> bool:
        a, b = places(case).get(i), places(case).get(j)
        if a is None or b is None:
            return True
        return a[:2] == b[:2] and abs(a[2] - b[2]) <= half and abs(a[3] - b[3]) <= half

    return keep


def blind(case: Case, i: int, j: int) -> bool:
    return not (is_text(case, i) and case.is_image(j))


def power_of_two(block: int, window: int) -> Pair:
    def keep(case: Case, i: int, j: int) -> bool:
        distance = abs(i // block - j // block)
        return distance < window or distance & (distance - 1) == 0 or j < block

    return keep


def question(case: Case, i: int, j: int) -> bool:
    """Image rows attend to text behind them, up to the end of the prompt."""
    return case.is_image(i) and is_text(case, j) and i < j < case.prompt


def rows_after_image(case: Case) -> list[int]:
    """Text behind the first image, generated or not."""
    images = [place for place in range(len(case)) if case.is_image(place)]
    return [place for place in range(images[0], len(case)) if is_text(case, place)] if images else []


def var(case: Case, rule: VarRule) -> Edit:
    """Redistributes weight from sinks to plain patches."""
    rows, patches = rows_after_image(case), torch.tensor([case.is_patch(place) for place in range(len(case))])

    def edit(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        weights = plain(layer, scores, may_read, stream)
        if layer in rule.layers:
            sinks = {place for place in sinks_of(stream, rule) if place < case.prompt}
            for head in weights:
                for row in rows:
                    new = redistributed(head[row], sinks, patches, rule)
                    if new is not None:
                        head[row] = new
        return weights

    return edit


def vhr(case: Case, rule: VhrRule) -> dict[int, Tensor]:
    """Which heads become louder, from the prompt with and without its images."""
    if not any(image is not None for image in case.image):
        return {}
    alone = case.without_images()
    without = walk(alone)
    gains: dict[int, Tensor] = {}
    for layer in rule.layers:
        if layer in without.heads:
            # Heads are chosen from what the layers below, louder already, made of the prompt.
            heads = walk(case, scale=gains).heads[layer][case.prompt - 1]
            text = without.heads[layer][alone.prompt - 1]
            chosen = _choose(heads, text, rule, layer, Truth())
            gains[layer] = torch.tensor(
                [rule.alpha if h in chosen else 1.0 for h in range(len(heads))]
            ).double()
    return gains


def louder(case: Case, layers: Sequence[int], alpha: float) -> Edit:
    """PAI: scores of image tokens grow by their size, for the last token of the prompt and the answer."""
    image = torch.tensor([case.is_image(place) for place in range(len(case))])
    rows = torch.arange(len(case)) >= case.prompt - 1

    def edit(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        if layer in layers:
            scores = scores + alpha * scores.abs() * (rows[:, None] & image[None])
        return plain(layer, scores, may_read, stream)

    return edit


def inhibited(case: Case, layer_of_scores: int, quantile: float, keep_min: int) -> Edit:
    """CMAI: words behind an image lose the patches of lowest focus in the layers behind the one of the scores."""
    hidden: dict[int, list[int]] = {}
    words = [place for place in range(len(case)) if is_text(case, place)]
    rows = rows_after_image(case)

    def choose(weights: Tensor) -> None:
        for row in rows:
            patches = [n for n in range(row) if case.is_patch(n)]
            read = [s for s in words if float(weights[row, s]) > 0]
            total = sum(float(weights[row, s]) for s in read)
            focus = {
                n: sum(float(weights[row, s]) / total * float(weights[s, n]) for s in read if s in rows)
                for n in patches
            }
            count = min(math.floor(quantile * len(patches) + 1e-6), max(len(patches) - keep_min, 0))
            hidden[row] = sorted(patches, key=lambda n: (focus[n], n))[:count]

    def edit(layer: int, scores: Tensor, may_read: Tensor, stream: Tensor) -> Tensor:
        if layer > layer_of_scores:
            may_read = may_read.clone()
            for row, lost in hidden.items():
                may_read[row, lost] = False
        weights = plain(layer, scores, may_read, stream)
        if layer == layer_of_scores:
            choose(weights.mean(0))
        return weights

    return edit


def early(layer: int) -> Callable[[Walk], Tensor]:
    """The stream in front of a layer, in place of the last one."""
    return lambda found: found.streams[layer]
