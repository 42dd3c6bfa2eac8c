"""What processors make of a video, by their own rules: blocks of frames, rows and columns of tokens of each.

Each rule is written from the processor's own statement of it (transformers 5.23) at its published settings, and
compared with the processor in `tests.families.test_video_processors` wherever torchvision is installed.
"""

from __future__ import annotations

import math

Size = tuple[int, int]
Blocks = tuple[int, int, int]


def llava_next_video(frames: int, size: Size) -> Blocks:
    """Every frame is one square of 336 pixels, 24 x 24 patches, pooled by two."""
    return frames, 12, 12


def llava_onevision(frames: int, size: Size) -> Blocks:
    """Every frame is one square of 384 pixels, 27 x 27 patches, scaled to half of that, rounded up."""
    return frames, 14, 14


def _scaled(height: int, width: int, weight: float, unit: int, least: int, most: int, rounded: int) -> Size:
    """Whole units of both sides, so that `rounded * height * width` is within limits where rounding leaves them."""
    down, across = round(height / unit) * unit, round(width / unit) * unit
    if rounded * down * across > most:
        shrink = math.sqrt(weight * height * width / most)
        return tuple(max(unit, math.floor(side / shrink / unit) * unit) for side in (height, width))  # type: ignore[return-value]
    if rounded * down * across < least:
        grow = math.sqrt(least / (weight * height * width))
        return tuple(math.ceil(side * grow / unit) * unit for side in (height, width))  # type: ignore[return-value]
    return down, across


def qwen2_vl(frames: int, size: Size) -> Blocks:
    """Frames of 128 to 768 tokens of 28 pixels, two frames a block."""
    down, across = _scaled(*size, 1, 28, 128 * 28 * 28, 768 * 28 * 28, 1)
    return math.ceil(frames / 2), down // 28, across // 28


def _by_volume(frames: int, size: Size, unit: int, least: int, most: int) -> Blocks:
    """The limits hold for all frames together; a side below one unit is scaled up first."""
    height, width = size
    if min(size) < unit:
        scale = max(unit / height, unit / width)
        height, width = int(height * scale), int(width * scale)
    down, across = _scaled(height, width, frames, unit, least, most, round(frames / 2) * 2)
    return math.ceil(frames / 2), down // unit, across // unit


def qwen3_vl(frames: int, size: Size) -> Blocks:
    """A video of 128 to 768 tokens' worth of pixels in all its frames, two frames a block."""
    return _by_volume(frames, size, 32, 128 * 32 * 32, 768 * 32 * 32)


def glm4v(frames: int, size: Size) -> Blocks:
    """A video of 16 to 60,000 tokens' worth of pixels in all its frames, two frames a block."""
    return _by_volume(frames, size, 28, 112 * 112, 28 * 28 * 2 * 30000)


RULES = {
    "llava_next_video": llava_next_video,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_vl,
    "glm4v": glm4v,
    "glm46v": glm4v,
}
