"""Changing an image: blacking out, cropping, enlarging, and masking by relevance."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image
from scipy import ndimage

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.maps import Map, Mask
from lvlm_attn.maps.regions import Box, bounding_box

_MOST_PIXELS = 4  # an enlarged crop has at most this many times the pixels of the image


def blacken(image: Image.Image, mask: Mask) -> Image.Image:
    """The image in RGB with black where `mask` `(height, width)` is False; itself if nothing is."""
    if mask.shape != (image.height, image.width):
        raise LvlmAttnError(
            f"A mask of {mask.shape[1]} x {mask.shape[0]} pixels does not fit an image of "
            f"{image.width} x {image.height}."
        )
    if mask.all():
        return image
    return Image.fromarray(np.asarray(image.convert("RGB")) * mask[:, :, None].astype(np.uint8))


def zoom_factor(crop: tuple[int, int], size: tuple[int, int], max_zoom: float) -> float:
    """How much a crop is enlarged: until it covers the size of the image, within bounds.

    Args:
        crop: width and height of the crop.
        size: width and height of the image.
        max_zoom: the largest factor. A factor that would make more than four times the image's pixels is
            lowered to that.

    Example:
        >>> zoom_factor((100, 50), (200, 200), 8.0), zoom_factor((10, 200), (1000, 800), 8.0)
        (4.0, 8.0)
    """
    across, down = size[0] / crop[0], size[1] / crop[1]
    most = math.sqrt(_MOST_PIXELS * size[0] * size[1] / (crop[0] * crop[1]))
    return max(1.0, min(max(across, down), max_zoom, most))


def refine(
    image: Image.Image, mask: Mask, max_zoom: float, pad_to_square: bool = False
) -> tuple[Image.Image, Box]:
    """Blacks out what is not in the mask, crops to its bounding box and enlarges the crop.

    Args:
        image: the image.
        mask: `(height, width)`, what to keep; an empty one keeps everything.
        max_zoom: see `zoom_factor`.
        pad_to_square: add black to the shorter side, for processors that cut off the ends of a longer one.

    Returns:
        The new image, and the box (left, top, right, bottom) in the old one. A mask that keeps everything gives
        the image itself.
    """
    box = bounding_box(mask)
    if box is None or mask.all():
        return image, (0, 0, image.width, image.height)
    crop = blacken(image, mask).crop(box)
    factor = zoom_factor(crop.size, image.size, max_zoom)
    if factor > 1:
        width, height = (max(1, round(edge * factor)) for edge in crop.size)
        crop = crop.resize((width, height), Image.Resampling.LANCZOS)
    if pad_to_square and crop.width != crop.height:
        edge = max(crop.size)
        square = Image.new("RGB", (edge, edge))
        square.paste(crop, ((edge - crop.width) // 2, (edge - crop.height) // 2))
        crop = square
    return crop, box


def smoothed(relevance: Map, size: tuple[int, int]) -> Map:
    """Brings a relevance grid to pixels: cubic with zeros around it, blurred, scaled to 0..1.

    Source: the Grad-CAM overlay of LAVIS (arXiv 2209.09019), which AGLA (arXiv 2406.12718) builds on: standard
        deviation 0.02 of the longer side; beyond the border the values of the border go on.

    Args:
        relevance: `(rows, cols)` of the whole image.
        size: width and height in pixels.

    Returns:
        `(height, width)`; all 0 where the relevance is the same everywhere.
    """
    width, height = size
    scaled = _to_unit(relevance.astype(np.float64))
    if relevance.shape != (height, width):
        factors = (height / relevance.shape[0], width / relevance.shape[1])
        large = ndimage.zoom(scaled, factors, order=3, mode="grid-constant", cval=0.0, grid_mode=True)
        scaled = np.clip(large, 0.0, 1.0)
    return _to_unit(ndimage.gaussian_filter(scaled, 0.02 * max(height, width), mode="nearest"))


def kept_share(similarity: float) -> float:
    """The share of an image that is kept: the better image and prompt match, the less, down to a half.

    Source: AGLA (arXiv 2406.12718), released code: `min(1 - similarity / 2, 1 - 1e-5)`.

    Example:
        >>> kept_share(0.4), kept_share(-1.0)
        (0.8, 0.99999)
    """
    return min(1 - similarity / 2, 1 - 1e-5)


def relevance_mask(relevance: Map, share: float) -> Mask:
    """Keeps the pixels of highest relevance.

    Args:
        relevance: `(height, width)`; NaN at pixels the model never sees, which are kept and not counted.
        share: share to keep, below 1. Of N distinct values `int(N * share) + 1` are kept, and ties with the
            last of them too.

    Returns:
        `(height, width)`; True everywhere if the relevance is the same everywhere.
    """
    counted = relevance[~np.isnan(relevance)]
    if counted.size == 0 or counted.min() == counted.max():
        return np.ones(relevance.shape, dtype=bool)
    rank = min(int(counted.size * share), counted.size - 1)
    least = np.partition(counted, counted.size - 1 - rank)[counted.size - 1 - rank]
    mask: Mask = ~(relevance < least)
    return mask


def _to_unit(values: Map) -> Map:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
