"""Numbers of recorded attention: mass by layer, head and class of keys, entropy, sinks, pointing, comparisons."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.views import find_sinks

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels, right and bottom exclusive."""
CLASSES = ("image patches", "other image tokens", "first token", "prompt text", "answer", "extra keys")


def mass_on(maps: AttentionMaps, is_key: Tensor) -> Map:
    """The weight on some keys, averaged over samples and their rows.

    Args:
        maps: the maps.
        is_key: `(batch, keys)`.

    Returns:
        `(layers, heads)`.
    """
    keys = is_key[:, None, None, :]
    return np.stack([_over_rows(maps, (value.double() * keys).sum(-1)) for value in maps.weights.values()])


def image_mass(maps: AttentionMaps, image: int | None = None) -> Map:
    """`(layers, heads)`: the weight on patches, of all images or of one, averaged over samples and rows."""
    is_key = maps.layout.is_patch
    return mass_on(maps, is_key if image is None else is_key & (maps.layout.image == image))


def class_masses(maps: AttentionMaps) -> dict[str, Map]:
    """By class of keys, `(layers,)`: the weight on it, averaged over samples, rows and heads.

    Classes are those of `CLASSES`: patches, newline and other image tokens, the first valid token (the usual text
    sink), other prompt text, the answer, and keys outside the sequence. They add up to 1 in raw maps.
    """
    layout = maps.layout
    first = layout.is_valid & (layout.is_valid.cumsum(1) == 1)
    members = {
        "image patches": layout.is_patch & ~first,
        "other image tokens": layout.is_filler & ~first,
        "first token": first,
        "prompt text": layout.is_text & ~layout.is_generated & ~first,
        "answer": layout.is_generated,
    }
    found = {name: mass_on(maps, is_key).mean(1) for name, is_key in members.items()}
    none = np.zeros(maps.rows.shape[0])
    found["extra keys"] = np.array(
        [
            _over_rows(maps, maps.extra[layer].double()).mean() if layer in maps.extra else none.sum()
            for layer in maps.layers
        ]
    )
    return found


def entropies(maps: AttentionMaps, on_image: bool = False) -> Map:
    """Entropy of every row in nats, averaged over samples and rows.

    Args:
        maps: the maps.
        on_image: of the weights on patches alone, scaled to sum to 1.

    Returns:
        `(layers, heads)`.
    """
    found = []
    for value in maps.weights.values():
        weights = value.double().clamp(min=0)
        if on_image:
            weights = weights * maps.layout.is_patch[:, None, None, :]
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
        found.append(_over_rows(maps, -torch.special.xlogy(weights, weights).sum(-1)))
    return np.stack(found)


@dataclass(frozen=True)
class SinkStatistics:
    """Sinks of one layer, averaged over samples.

    Attributes:
        layer: the layer.
        patches: how many patches are sinks.
        texts: how many text tokens are.
        patch_mass: weight on patch sinks, averaged over rows and heads.
        text_mass: weight on text sinks.
    """

    layer: int | str
    patches: float
    texts: float
    patch_mass: float
    text_mass: float


def sink_statistics(
    maps: AttentionMaps, tau: float | None = None, factor: float = 5.0
) -> list[SinkStatistics]:
    """How many sinks there are per layer, and how much attention they take; see `views.find_sinks`."""
    sinks = find_sinks(maps, tau, factor)
    found = []
    for layer in maps.layers:
        if layer not in sinks:
            continue
        one = maps.layer(layer)
        on_patch, on_text = sinks[layer] & maps.layout.is_patch, sinks[layer] & maps.layout.is_text
        found.append(
            SinkStatistics(
                layer,
                float(on_patch.sum()) / maps.batch,
                float(on_text.sum()) / maps.batch,
                float(mass_on(one, on_patch).mean()),
                float(mass_on(one, on_text).mean()),
            )
        )
    return found


def coco_box(bbox: Sequence[float]) -> Box:
    """The box of a COCO annotation, whose `bbox` is left, top, width and height in pixels.

    Example:
        >>> coco_box([10, 20, 30, 5])
        (10, 20, 40, 25)
    """
    left, top, width, height = bbox
    return left, top, left + width, top + height


@dataclass(frozen=True)
class Pointing:
    """Whether a map points at an object.

    Attributes:
        is_hit: whether the map's highest pixel lies in a box.
        energy: the share of the map's positive sum that lies in the boxes, 0 to 1.
        area: the share of the picture that the boxes cover, which an even map has as its energy.
    """

    is_hit: bool
    energy: float
    area: float


def pointing(values: Map, boxes: Sequence[Box]) -> Pointing:
    """Does a map fall on an object?

    Source: the pointing game of Zhang et al. (arXiv 1608.00507) for `is_hit`; its energy form of Wang et al.,
    Score-CAM (arXiv 1910.01279), for `energy`.

    Args:
        values: `(height, width)`; negative values count as 0. Of equally high pixels the middle one counts.
        boxes: where the object is, in pixels.

    Raises:
        LvlmAttnError: without a box.

    Example:
        >>> pointing(np.array([[0.0, 3.0], [1.0, 0.0]]), [(1, 0, 2, 1)])
        Pointing(is_hit=True, energy=0.75, area=0.25)
    """
    if not boxes:
        raise LvlmAttnError("pointing needs at least one box to point at.")
    inside = np.zeros(values.shape, dtype=bool)
    for left, top, right, bottom in boxes:
        inside[max(round(top), 0) : max(round(bottom), 0), max(round(left), 0) : max(round(right), 0)] = True
    positive = np.clip(values, 0, None)
    total = float(positive.sum())
    peaks = np.argwhere(values == values.max())
    centre = peaks[np.abs(peaks - peaks.mean(0)).sum(1).argmin()]
    energy = float(positive[inside].sum()) / total if total > 0 else float(inside.mean())
    return Pointing(bool(inside[tuple(centre)]), energy, float(inside.mean()))


def rank_correlation(first: Map, second: Map) -> float:
    """Spearman's rank correlation of two maps; 0 where one of them is the same everywhere."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(stats.spearmanr(first.ravel(), second.ravel()).statistic)


@dataclass(frozen=True)
class Difference:
    """Two groups of words compared.

    Attributes:
        first: mean of the first group.
        second: mean of the second.
        difference: first minus second.
        low: lower end of the interval of the difference.
        high: upper end.
        level: coverage of the interval.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    level: float


def compare(
    first: Sequence[float],
    second: Sequence[float],
    level: float = 0.95,
    seed: int = 0,
    *,
    pictures: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
) -> Difference:
    """Compares a number between two groups of words, as the image mass of hallucinated and of grounded ones.

    The interval is a bootstrap of the difference of means: BCa over words, both groups resampled; or, since words of
    one caption are not independent, the percentile interval over pictures where these are told (9,999 resamples).

    Args:
        first: one number per word.
        second: the same for the other group.
        level: coverage of the interval.
        seed: of the resampling.
        pictures: which picture each word is about, for either group.

    Raises:
        LvlmAttnError: if a group has fewer than two words, or not one picture is told for each.

    Example:
        >>> found = compare([0.1, 0.2, 0.3], [0.5, 0.6], pictures=("aab", "bc"))
        >>> round(found.difference, 3), found.high < 0
        (-0.35, True)
    """
    groups = [np.asarray(list(group), dtype=float) for group in (first, second)]
    if min(len(group) for group in groups) < 2:
        raise LvlmAttnError(
            f"An interval needs at least two words in each group; there are {len(groups[0])} and {len(groups[1])}."
        )
    means = [float(group.mean()) for group in groups]
    low = high = means[0] - means[1]
    if pictures is not None:
        low, high = _over_pictures(groups, pictures, level, seed)
    elif any(np.ptp(group) > 0 for group in groups):
        found = stats.bootstrap(
            groups, _difference, confidence_level=level, rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return Difference(means[0], means[1], means[0] - means[1], low, high, level)


def _over_pictures(
    groups: Sequence[Map], pictures: tuple[Sequence[Hashable], Sequence[Hashable]], level: float, seed: int
) -> tuple[float, float]:
    """The percentile interval of the difference of means, with pictures drawn with replacement."""
    if [len(names) for names in pictures] != [len(group) for group in groups]:
        raise LvlmAttnError(
            f"There are {len(groups[0])} and {len(groups[1])} words and {len(pictures[0])} and {len(pictures[1])} "
            f"pictures; tell one picture for each word."
        )
    index = {name: number for number, name in enumerate(dict.fromkeys([*pictures[0], *pictures[1]]))}
    totals = np.zeros((len(index), 4))
    for side, (group, names) in enumerate(zip(groups, pictures)):
        places = [index[name] for name in names]
        np.add.at(totals[:, 2 * side], places, group)
        np.add.at(totals[:, 2 * side + 1], places, 1)
    drawn = (
        np.random.default_rng(seed).multinomial(len(index), np.full(len(index), 1 / len(index)), 9999)
        @ totals
    )
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]  # a draw may hold no word of a group
    low, high = np.quantile(
        drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3], [(1 - level) / 2, (1 + level) / 2]
    )
    return float(low), float(high)


def _difference(first: Map, second: Map, axis: int = -1) -> Map:
    return cast("Map", first.mean(axis=axis) - second.mean(axis=axis))


def _over_rows(maps: AttentionMaps, values: Tensor) -> Map:
    """`(heads,)`: mean over all rows there are of `(batch, heads, rows)`."""
    is_row = (maps.rows >= 0)[:, None].to(values)
    return cast("Map", ((values * is_row).sum((0, 2)) / is_row.sum((0, 2)).clamp(min=1)).numpy())
