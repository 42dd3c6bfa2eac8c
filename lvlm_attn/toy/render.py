"""From a random generator to a picture: placing sprites, hiding parts of them, and composing the pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_attn.toy.sprites import sprite
from lvlm_attn.toy.world import Rng, WorldConfig, draw_background, draw_context, draw_names, variants

Array: TypeAlias = NDArray[Any]

_OPAQUE = 0.5  # a sprite's pixel with at least this opacity counts as part of the object


@dataclass(frozen=True)
class Placement:
    """One object put into a picture, before what hides it is known."""

    name: str
    x: int
    y: int
    contrast: float
    pixels: Array  # (height, width, 3) colours, float32, 0 to 255
    alpha: Array  # (height, width) opacity, float32, 0 to 1


@dataclass(frozen=True)
class Composition:
    """A finished picture.

    Attributes:
        context: The scene's context.
        pixels: (size, size, 3) uint8 colours.
        owner: (size, size) int8, the index of the topmost object at each pixel, -1 for background.
        placements: The objects, from the back to the front.
        visible: For each object the share of its opaque pixels in sight.
    """

    context: str
    pixels: Array
    owner: Array
    placements: tuple[Placement, ...]
    visible: tuple[float, ...]


def compose(
    rng: Rng, config: WorldConfig, counts: tuple[int, int] = (2, 5), classes: int | None = None
) -> Composition:
    """Draws a scene: what is in it, where, how visible; and renders it.

    Args:
        rng: Source of randomness; the same state gives the same picture.
        config: How hard the picture is.
        counts: Smallest and largest number of objects.
        classes: Use only the first so many categories (for a curriculum).
    """
    context = draw_context(rng)
    count = int(rng.integers(counts[0], counts[1] + 1))
    names = draw_names(rng, context, count, classes)
    background = _background(rng, config, context)
    placed: list[Placement] = []
    owner = np.full((config.size, config.size), -1, dtype=np.int8)
    visible: list[float] = []
    for name in names:
        for attempt in range(12):
            candidate = _place(rng, config, name, placed, hiding=attempt < 6)
            new_owner = _cover(owner, candidate, len(placed))
            shares = _shares([*placed, candidate], new_owner)
            if min(shares) >= config.min_visible:
                placed.append(candidate)
                owner, visible = new_owner, shares
                break
    canvas = background
    for item in placed:
        _paint(canvas, item)
    canvas += rng.normal(0, rng.uniform(2, config.noise), canvas.shape).astype(np.float32)
    pixels = np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
    return Composition(context, pixels, owner, tuple(placed), tuple(visible))


def clipped_box(item: Placement, size: int) -> tuple[int, int, int, int]:
    """Returns the part of an object's box that lies in the picture, as (x0, y0, x1, y1), x1 and y1 exclusive."""
    height, width = item.alpha.shape
    return max(item.x, 0), max(item.y, 0), min(item.x + width, size), min(item.y + height, size)


def patch_labels(
    owner: Array, labels: Array, patch: int, background: int, least: float = 0.2
) -> NDArray[np.int64]:
    """Names the object that fills most of each patch.

    Args:
        owner: (size, size) index of the object at each pixel, -1 for none.
        labels: (objects,) category of each object.
        patch: Side of a patch in pixels.
        background: Label of a patch that no object fills to ``least``.
        least: Smallest share of a patch that an object must own.

    Returns:
        (patches,) labels in reading order.
    """
    side = owner.shape[0] // patch
    tiles = owner[: side * patch, : side * patch].reshape(side, patch, side, patch).transpose(0, 2, 1, 3)
    blocks = tiles.reshape(side * side, patch * patch)
    shares = np.stack([(blocks == index).mean(1) for index in range(len(labels))], 1)
    best = shares.argmax(1)
    enough = shares.max(1) >= least
    result: NDArray[np.int64] = np.where(enough, np.asarray(labels, dtype=np.int64)[best], background)
    return result


def _background(rng: Rng, config: WorldConfig, context: str) -> Array:
    colour = np.array(draw_background(rng, context), dtype=np.float32)
    slope = rng.uniform(-30, 30, 2)
    steps = np.linspace(-0.5, 0.5, config.size, dtype=np.float32)
    shade = (slope[0] * steps[:, None] + slope[1] * steps[None, :]).astype(np.float32)
    canvas: Array = colour[None, None, :] + shade[:, :, None]
    return canvas


def _place(rng: Rng, config: WorldConfig, name: str, placed: list[Placement], hiding: bool) -> Placement:
    picture = sprite(name, int(rng.integers(variants(name))))
    low, high = config.sides
    longer = low + (high - low) * rng.random() ** 1.3
    scale = longer / max(picture.size)
    width, height = (max(4, round(side * scale)) for side in picture.size)
    small = picture.convert("RGBa").resize((width, height), Image.Resampling.BILINEAR).convert("RGBA")
    if rng.random() < 0.5:
        small = small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(small, dtype=np.float32)
    contrast = float(rng.uniform(*config.contrast)) if rng.random() < config.faint_share else 1.0
    x, y = _spot(rng, config, (width, height), placed, hiding)
    return Placement(name, x, y, contrast, values[:, :, :3], values[:, :, 3] / 255.0)


def _spot(
    rng: Rng, config: WorldConfig, extent: tuple[int, int], placed: list[Placement], hiding: bool
) -> tuple[int, int]:
    """A free place; or, when hiding, one that overlaps an earlier object or the picture's edge."""
    width, height = extent
    if hiding and rng.random() < config.hide_share:
        if placed and rng.random() < 0.7:
            other = placed[int(rng.integers(len(placed)))]
            far_x, far_y = (other.alpha.shape[1] + width) * 0.4, (other.alpha.shape[0] + height) * 0.4
            x = other.x + (other.alpha.shape[1] - width) / 2 + rng.uniform(-far_x, far_x)
            y = other.y + (other.alpha.shape[0] - height) / 2 + rng.uniform(-far_y, far_y)
            return round(min(max(x, 0), config.size - width)), round(min(max(y, 0), config.size - height))
        cut = rng.uniform(0.2, 0.6)
        along = rng.uniform(0, config.size - max(width, height))
        edge = int(rng.integers(4))
        return (
            (round(-cut * width), round(along)),
            (round(config.size - width * (1 - cut)), round(along)),
            (round(along), round(-cut * height)),
            (round(along), round(config.size - height * (1 - cut))),
        )[edge]
    x = y = 0
    for _ in range(10):
        x, y = int(rng.integers(config.size - width + 1)), int(rng.integers(config.size - height + 1))
        if not any(_overlap(x, y, width, height, other) for other in placed):
            break
    return x, y


def _overlap(x: int, y: int, width: int, height: int, other: Placement) -> bool:
    tall, wide = other.alpha.shape
    return x < other.x + wide and other.x < x + width and y < other.y + tall and other.y < y + height


def _window(item: Placement, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of the picture and of the sprite where the two meet."""
    x0, y0, x1, y1 = clipped_box(item, size)
    inside = (slice(y0 - item.y, y1 - item.y), slice(x0 - item.x, x1 - item.x))
    return (slice(y0, y1), slice(x0, x1)), inside


def _cover(owner: Array, item: Placement, index: int) -> Array:
    outside, inside = _window(item, owner.shape[0])
    covered = owner.copy()
    covered[outside][item.alpha[inside] >= _OPAQUE] = index
    return covered


def _shares(placed: list[Placement], owner: Array) -> list[float]:
    counts = np.bincount(owner.ravel().astype(np.int64) + 1, minlength=len(placed) + 1)[1:]
    return [float(n) / max(1, int((p.alpha >= _OPAQUE).sum())) for n, p in zip(counts, placed)]


def _paint(canvas: Array, item: Placement) -> None:
    outside, inside = _window(item, canvas.shape[0])
    opacity = (item.alpha[inside] * item.contrast)[:, :, None]
    canvas[outside] += opacity * (item.pixels[inside] - canvas[outside])
