"""The toy's scenes: fixed, reproducible pictures whose objects are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.toy.render import Composition, clipped_box, compose
from lvlm_attn.toy.world import WorldConfig

#: How many scenes each split has.
SPLIT_SIZES = MappingProxyType({"train": 30_000, "dev": 500, "test": 500, "fresh": 500})
_SPLIT_KEYS = MappingProxyType({"train": 0, "dev": 1, "test": 2, "fresh": 3})
_SALT = 20_250_117  # first entry of every seed, so that no other use of small seeds repeats these streams


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        name: COCO category.
        box: (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, cut at the picture's edge.
        visible: Share of the object's opaque pixels that neither another object nor the picture's edge hides.
        contrast: Opacity it was painted with: 1 is plain, less is faint.
    """

    name: str
    box: tuple[int, int, int, int]
    visible: float
    contrast: float


@dataclass(frozen=True)
class Scene:
    """A picture's description, with the picture.

    Attributes:
        split: "train", "dev" or "test".
        index: Place in its split, from 0.
        context: The scene's context, a key of ``contexts()``.
        objects: The objects, from the back to the front.
    """

    split: str
    index: int
    context: str
    objects: tuple[SceneObject, ...]
    _pixels: NDArray[Any] | None = field(default=None, repr=False, compare=False)

    @property
    def id(self) -> str:
        """A name such as ``toy-test-0001``."""
        return f"toy-{self.split}-{self.index:04d}"

    @property
    def names(self) -> tuple[str, ...]:
        """The distinct categories in the picture, sorted."""
        return tuple(sorted({item.name for item in self.objects}))

    @property
    def image(self) -> Image.Image:
        """The picture, 144 x 144 pixels, RGB; a copy at each access."""
        pixels = self._pixels
        if pixels is None:
            pixels = composition(self.split, self.index).pixels
        return Image.fromarray(pixels.copy(), "RGB")


def composition(
    split: str,
    index: int,
    config: WorldConfig | None = None,
    counts: tuple[int, int] = (2, 5),
    classes: int | None = None,
) -> Composition:
    """Renders scene ``index`` of a split; it depends on nothing but the arguments."""
    seed = np.random.SeedSequence([_SALT, _SPLIT_KEYS[split], index])
    return compose(np.random.default_rng(seed), config or WorldConfig(), counts, classes)


def describe(split: str, index: int, made: Composition) -> Scene:
    """Returns the description of a rendered scene."""
    size = made.owner.shape[0]
    objects = tuple(
        SceneObject(item.name, clipped_box(item, size), share, item.contrast)
        for item, share in zip(made.placements, made.visible)
    )
    return Scene(split, index, made.context, objects, made.pixels)


class _Scenes(Sequence[Scene]):
    """A range of a split, drawn when read."""

    def __init__(self, split: str, indices: range) -> None:
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, key: int) -> Scene: ...
    @overload
    def __getitem__(self, key: slice) -> Sequence[Scene]: ...
    def __getitem__(self, key: int | slice) -> Scene | Sequence[Scene]:
        if isinstance(key, slice):
            return _Scenes(self._split, self._indices[key])
        index = self._indices[key]
        return describe(self._split, index, composition(self._split, index))

    def __iter__(self) -> Iterator[Scene]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"<{len(self)} scenes of toy-{self._split}>"


def scenes(split: str = "test", count: int | None = None, start: int = 0) -> Sequence[Scene]:
    """Returns scenes of a split, drawn one by one as they are read.

    Args:
        split: "test" (report on it), "dev" (tune on it), "train", or "fresh", on which nothing has been reported yet:
            it is kept for methods that come later.
        count: How many; None for all from ``start`` on.
        start: Index of the first one.

    Returns:
        A sequence of ``Scene``. Scene i of a split is always the same picture, whatever else is read.

    Raises:
        LvlmAttnError: The split is unknown, or the range leaves it.

    Example:
        >>> from lvlm_attn.toy import scenes
        >>> first = scenes("test", 10)[0]
        >>> first.id, first.image.size
        ('toy-test-0000', (144, 144))
    """
    if split not in SPLIT_SIZES:
        known = ", ".join(SPLIT_SIZES)
        raise LvlmAttnError(f"The toy has no split {split!r}, only {known}.{closest(split, SPLIT_SIZES)}")
    size = SPLIT_SIZES[split]
    stop = size if count is None else start + count
    if start < 0 or (count is not None and count < 0) or start > size or stop > size:
        raise LvlmAttnError(
            f"The toy's split {split!r} has scenes 0 to {size - 1}: {start} to {stop - 1} leaves it."
        )
    return _Scenes(split, range(start, stop))
