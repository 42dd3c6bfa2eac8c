"""Crops, black masks and blur of the toy's training pictures: views as AGLA, CARVE and others make them."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from lvlm_attn.toy.world import Rng

Array: TypeAlias = NDArray[Any]

#: What a training view may be, and how often.
KINDS = MappingProxyType({"plain": 0.45, "crop": 0.28, "mask": 0.2, "blur": 0.07})
_ZOOM = (1.1, 3.2)
_NOTHING = -1  # owner of a pixel that shows no object


@dataclass(frozen=True)
class View:
    """A view of a picture.

    Attributes:
        kind: A key of ``KINDS``.
        pixels: (size, size, 3) uint8 colours.
        owner: (size, size) int8, the index of the object at each pixel, -1 for none.
        kept: (size, size), True at the pixels of the whole picture that the view shows.
    """

    kind: str
    pixels: Array
    owner: Array
    kept: NDArray[np.bool_]


def draw_view(rng: Rng, pixels: Array, owner: Array) -> View:
    """Draws a view of a picture.

    Args:
        rng: Source of randomness.
        pixels: (size, size, 3) uint8 colours.
        owner: (size, size) int8, the index of the object at each pixel, -1 for none.
    """
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=list(KINDS.values())))]
    kept = np.ones(owner.shape, dtype=np.bool_)
    if kind == "crop":
        box = _window(rng, owner)
        kept[:] = False
        kept[box[1] : box[3], box[0] : box[2]] = True
        return View(kind, *cropped(pixels, owner, box), kept)
    if kind == "mask":
        kept = draw_mask(rng, owner)
        dark = pixels * kept[:, :, None].astype(np.uint8)
        names = np.where(kept, owner, _NOTHING).astype(owner.dtype)
        shown = (dark, names) if rng.random() < 0.4 else cropped(dark, names, _bounds(kept))
        return View(kind, *shown, kept)
    if kind == "blur":
        soft = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2.0))))
        return View(kind, np.asarray(soft), owner, kept)
    return View(kind, pixels, owner, kept)


def cropped(pixels: Array, owner: Array, box: tuple[int, int, int, int]) -> tuple[Array, Array]:
    """Cuts a box out, adds black to its shorter side and enlarges it to the picture's size.

    Args:
        pixels: (size, size, 3) uint8 colours.
        owner: (size, size) int8 indices of objects.
        box: left, top, right, bottom; right and bottom exclusive.
    """
    size = owner.shape[0]
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    down, across = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    square = np.zeros((side, side, 3), np.uint8)
    names = np.full((side, side), _NOTHING, owner.dtype)
    inside = np.s_[down : down + bottom - top, across : across + right - left]
    square[inside] = pixels[top:bottom, left:right]
    names[inside] = owner[top:bottom, left:right]
    large = Image.fromarray(square).resize((size, size), Image.Resampling.LANCZOS)
    nearest = (np.arange(size) * side) // size
    return np.asarray(large), names[nearest][:, nearest]


def draw_mask(rng: Rng, owner: Array) -> NDArray[np.bool_]:
    """Draws what to keep of a picture: a few smooth regions, often around objects.

    Args:
        rng: Source of randomness.
        owner: (size, size) int8 indices of objects.

    Returns:
        (size, size), True where the picture stays; never empty.
    """
    size = owner.shape[0]
    rough = ndimage.zoom(rng.normal(0, 1, (6, 6)), size / 6, order=1)[:size, :size]
    down, across = np.mgrid[:size, :size]
    field = 0.5 * rough
    for _ in range(int(rng.integers(1, 4))):
        y, x = _middle(rng, owner) if rng.random() < 0.7 else rng.uniform(0, size, 2)
        spread = rng.uniform(0.08, 0.22) * size
        field = field + 3 * np.exp(-((down - y) ** 2 + (across - x) ** 2) / (2 * spread**2))
    kept: NDArray[np.bool_] = field >= np.quantile(field, 1 - rng.uniform(0.1, 0.6))
    return kept


def _window(rng: Rng, owner: Array) -> tuple[int, int, int, int]:
    """A box whose longer side is the picture's over the zoom; half of them around some object's middle."""
    size = owner.shape[0]
    longer = size / rng.uniform(*_ZOOM)
    width, height = (max(16, round(longer * share)) for share in _shares(rng))
    y, x = _middle(rng, owner) if rng.random() < 0.5 else rng.uniform(0, size, 2)
    left = round(min(max(x - width / 2, 0), size - width))
    top = round(min(max(y - height / 2, 0), size - height))
    return left, top, left + width, top + height


def _shares(rng: Rng) -> tuple[float, float]:
    short = float(rng.uniform(0.6, 1.0))
    return (short, 1.0) if rng.random() < 0.5 else (1.0, short)


def _middle(rng: Rng, owner: Array) -> tuple[float, float]:
    """The middle of an object that is in sight; of the picture where none is."""
    seen = np.unique(owner[owner != _NOTHING])
    if not len(seen):
        return owner.shape[0] / 2, owner.shape[0] / 2
    ys, xs = np.nonzero(owner == seen[int(rng.integers(len(seen)))])
    return float(ys.mean()), float(xs.mean())


def _bounds(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
