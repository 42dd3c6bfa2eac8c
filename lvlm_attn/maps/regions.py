"""From a map to the part of an image that is kept: threshold, connected regions, bounding box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy import ndimage

from lvlm_attn.maps.maps import Map, Mask

Box = tuple[int, int, int, int]
RegionRule = Literal["paper", "released"]

_ROUNDING = 1e-9  # values that differ by less, relative to the threshold, count as ties


def threshold(maps: Sequence[Map], p: float, is_seen: Sequence[Mask] | None = None) -> list[Mask]:
    """Keeps the share `p` of the pixels of all maps together that have the highest values.

    Args:
        maps: the maps `(height, width)` of the images of one prompt.
        p: share to keep, in (0, 1]; ties at the threshold are kept too. 1 keeps everything.
        is_seen: True at the pixels that count; others are never kept unless `p` is 1.

    Returns:
        One mask per map.

    Example:
        >>> threshold([np.array([[1.0, 2.0, 3.0, 4.0]])], 0.5)[0].tolist()
        [[False, False, True, True]]
    """
    if p >= 1:
        return [np.ones(item.shape, dtype=bool) for item in maps]
    counted = [np.ones(item.shape, dtype=bool) for item in maps] if is_seen is None else list(is_seen)
    if not any(mask.any() for mask in counted):
        return [np.zeros(item.shape, dtype=bool) for item in maps]
    values = np.concatenate([item[mask] for item, mask in zip(maps, counted)])
    tau = np.quantile(values, 1 - p)
    tau -= _ROUNDING * abs(tau)
    return [(item >= tau) & mask for item, mask in zip(maps, counted)]


def best_regions(
    masks: Sequence[Mask], maps: Sequence[Map], keep: int, rule: RegionRule = "paper", p: float = 0.2
) -> list[Mask]:
    """Keeps the connected regions that hold most of the maps, over all images of one prompt.

    Pixels are connected by their edges, not by their corners.

    Source: CARVE (arXiv 2509.06461), section 4; the rule of the released code keeps at least three regions,
        and the share `p` of them where that is more.

    Args:
        masks: per image `(height, width)`.
        maps: per image, what is summed up over a region.
        keep: how many regions to keep.
        rule: `"paper"` keeps `keep` regions; `"released"` keeps `max(keep, int(regions * p))`.
        p: the share of pixels the masks keep, for the released rule.

    Returns:
        One mask per image; its regions are among those of the given mask.
    """
    labels = [ndimage.label(mask)[0] for mask in masks]
    scores = [
        (float(score), image, number + 1)
        for image, (label, values) in enumerate(zip(labels, maps))
        for number, score in enumerate(_sums(values, label))
    ]
    count = keep if rule == "paper" else max(keep, int(len(scores) * p))
    chosen = sorted(scores, key=lambda item: -item[0])[:count]
    return [
        np.isin(label, [number for _, place, number in chosen if place == image])
        for image, label in enumerate(labels)
    ]


def bounding_box(mask: Mask) -> Box | None:
    """The smallest box (left, top, right, bottom) around a mask, right and bottom exclusive; None if empty.

    Example:
        >>> bounding_box(np.array([[False, True], [False, False]]))
        (1, 0, 2, 1)
    """
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows.size == 0:
        return None
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def _sums(values: Map, label: np.ndarray) -> np.ndarray:
    return np.bincount(label.ravel(), weights=values.ravel())[1:]
