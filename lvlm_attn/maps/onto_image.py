"""From weights on keys to patches of an image, and to the pixels of the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.maps.geometry import Level, levels_of
from lvlm_attn.maps.maps import Map, Mask, assemble, paint, seen, spread, upsample

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.layout.grids import ImageGrid
    from lvlm_attn.maps.attention_maps import AttentionMaps

RATIO_VIEWS = ("contrast",)
"""Views whose values are ratios, which are painted on pixels and never divided among them."""


@dataclass(frozen=True, eq=False)
class MapImage:
    """An image of a prompt as maps know it.

    Attributes:
        size: width and height in pixels, as the processor got it; None if only tensors were given.
        levels: where its patches lie, or None if that is not known.
        picture: the image itself, or None.
        reason: why `levels` is None.
    """

    size: tuple[int, int] | None = None
    levels: tuple[Level, ...] | None = None
    picture: Image | None = None
    reason: str = ""

    @staticmethod
    def of(grid: ImageGrid, picture: Image | None, config: Any, processor: Any) -> MapImage:
        """What is known of an image; nothing is raised here, since patches can be shown without pixels.

        Args:
            grid: the image's grid.
            picture: the image as the processor got it, or None if only tensors were given.
            config: the model's configuration.
            processor: the model's processor, or None.
        """
        if grid.is_video:
            return MapImage(
                reason="videos: the pictures of the frames are not known; maps.grid gives a map of each frame"
            )
        if picture is None or processor is None:
            return MapImage(
                reason="the picture itself is not known; call lvlm.generate(images=[...], prompts=[...]) in a "
                "wrap with processor=processor"
            )
        try:
            return MapImage(picture.size, levels_of(grid, picture.size, config, processor), picture)
        except UnsupportedError as error:
            return MapImage(picture.size, None, picture, str(error).rstrip("."))


def choose_image(maps: AttentionMaps, image: int | None) -> int:
    """The number of an image of a single sample; the only one if none is named.

    Raises:
        LvlmAttnError: if there is none, no such one, or one of several has to be chosen.
    """
    count = len(maps.layout.grids[0])
    if not count:
        raise LvlmAttnError("This prompt has no image with a grid of patches, so there is no map of one.")
    if image is None and count > 1:
        raise LvlmAttnError(f"This prompt has {count} images; choose one with image=0 to image={count - 1}.")
    chosen = image or 0
    if not 0 <= chosen < count:
        raise LvlmAttnError(f"There is no image {chosen}; this prompt has {count}, numbered from 0.")
    return chosen


def patch_positions(maps: AttentionMaps, image: int) -> list[np.ndarray[Any, Any]]:
    """Per block of an image of a single sample `(rows, cols)`: the positions of its patches."""
    layout = maps.layout
    is_own = layout.is_patch[0] & (layout.image[0] == image)
    found = []
    for number, block in enumerate(layout.grids[0][image].blocks):
        places = (is_own & (layout.block[0] == number)).nonzero().flatten().numpy()
        found.append(places.reshape(block.rows, block.cols))
    return found


def grid(maps: AttentionMaps, values: Map, image: int | None) -> list[Map]:
    """Per block `(rows, cols)` of values `(keys,)`."""
    return [values[places] for places in patch_positions(maps, choose_image(maps, image))]


def map_image(maps: AttentionMaps, image: int | None) -> MapImage:
    """The image of a single sample, with known levels.

    Raises:
        LvlmAttnError: if where its patches lie is not known.
    """
    chosen = choose_image(maps, image)
    known = maps.images[0][chosen] if maps.images and chosen < len(maps.images[0]) else MapImage()
    if known.levels is None or known.size is None:
        reason = known.reason or "these maps were made without pictures"
        raise LvlmAttnError(f"The patches of image {chosen} have no known place in pixels: {reason}.")
    return known


def pixels(maps: AttentionMaps, blocks: Sequence[Map], image: int | None, level: str, smooth: bool) -> Map:
    """See `AttentionMaps.pixels`; `blocks` are what `grid` gives."""
    known = map_image(maps, image)
    return pixels_of(known, blocks, level=level, smooth=smooth, is_ratio=maps.view_name in RATIO_VIEWS)


def pixels_of(
    known: MapImage,
    blocks: Sequence[Map],
    *,
    level: str = "all",
    smooth: bool = False,
    is_ratio: bool = False,
) -> Map:
    """Brings blocks of patches to the pixels of their picture.

    Args:
        known: the picture and where its patches lie.
        blocks: per block `(rows, cols)`.
        level: `"all"`, `"coarse"` or `"fine"`.
        smooth: bilinear between the centres of patches.
        is_ratio: values are painted, and levels averaged, rather than divided among pixels and added up.

    Returns:
        `(height, width)`.

    Raises:
        LvlmAttnError: if there is no such level.
    """
    assert known.levels is not None
    assert known.size is not None
    if level not in ("all", "coarse", "fine"):
        raise LvlmAttnError(f"level={level!r} must be 'all', 'coarse' (the thumbnail) or 'fine' (the tiles).")
    if level == "fine" and len(known.levels) == 1:
        raise LvlmAttnError("This image was read once over and has no tiles; leave out level='fine'.")
    chosen = {"all": known.levels, "coarse": known.levels[:1], "fine": known.levels[1:]}[level]
    total = np.zeros((known.size[1], known.size[0]))
    cover = np.zeros_like(total)
    for one in chosen:
        values = assemble(blocks, one)
        place = paint if is_ratio else spread
        exact = place(values, one.frame, known.size)
        if smooth:
            soft = upsample(values, one.frame, known.size)
            if not is_ratio:
                share = exact.sum() / soft.sum() if soft.sum() else 0.0
                soft = soft * share
            exact = soft
        total += exact
        cover += seen(one.frame, known.size)
    return total / np.maximum(cover, 1) if is_ratio else total


def seen_pixels(maps: AttentionMaps, image: int | None) -> Mask:
    """See `AttentionMaps.seen`."""
    known = map_image(maps, image)
    assert known.levels is not None
    assert known.size is not None
    shown: Mask = np.logical_or.reduce([seen(level.frame, known.size) for level in known.levels])
    return shown
