"""What the page is told beside the weights: tokens, pictures, where patches lie, what was run."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvlm_attn.layout.grids import Kind
from lvlm_attn.maps.onto_image import MapImage, patch_positions

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.maps.attention_maps import AttentionMaps

_MOST_PIXELS = 1024  # of the longer side of a picture in the page


def kept_keys(maps: AttentionMaps) -> list[int]:
    """The key positions of a single sample that are no padding."""
    return [int(place) for place in maps.layout.is_valid[0].nonzero().flatten()]


def tokens_of(maps: AttentionMaps, keys: list[int]) -> list[dict[str, Any]]:
    """The sequence as the page shows it: text token by token, and each image as one entry.

    An entry has `text`; `kind` (`"prompt"`, `"answer"` or `"image"`); `key`, its place among the keys, or -1 if no
    query came after it; `row`, the number of its row, or -1 if none was recorded; `image` for images.
    """
    key_at = {position: index for index, position in enumerate(keys)}
    row_at: dict[int, int] = {}
    for row, position in enumerate(maps.targets[0].tolist()):
        row_at.setdefault(position, row)
    layout = maps.layout
    entries: list[dict[str, Any]] = []
    shown: set[int] = set()
    for position in [*keys, *range(layout.length, maps.ids.shape[1])]:
        inside = position < layout.length
        kind = int(layout.kind[0, position]) if inside else int(Kind.GENERATED)
        if kind in (Kind.PATCH, Kind.FILLER):
            image = int(layout.image[0, position])
            if image not in shown:
                shown.add(image)
                entries.append({"text": "", "kind": "image", "key": -1, "row": -1, "image": image})
            continue
        if not inside and position not in row_at:
            continue
        entries.append(
            {
                "text": maps.text_of(position),
                "kind": "answer" if kind == Kind.GENERATED else "prompt",
                "key": key_at.get(position, -1),
                "row": row_at.get(position, -1),
            }
        )
    return entries


def images_of(maps: AttentionMaps, keys: list[int]) -> list[dict[str, Any]]:
    """Every image: the picture as a data address, its size, and its levels with the key of every cell."""
    key_at = {position: index for index, position in enumerate(keys)}
    found = []
    for number in range(len(maps.layout.grids[0])):
        known = maps.images[0][number] if maps.images and number < len(maps.images[0]) else MapImage()
        blocks = [
            np.array([[key_at[int(place)] for place in row] for row in block])
            for block in patch_positions(maps, number)
        ]
        if known.levels is None or known.size is None:
            is_video = maps.layout.grids[0][number].is_video
            shown = [_sheet(blocks)] if is_video else blocks
            size, levels = _unplaced([block.tolist() for block in shown])
        else:
            size = known.size
            levels = []
            for level in known.levels:
                cells = [[-1] * level.cols for _ in range(level.rows)]
                for block, top, left in level.blocks:
                    for down, row in enumerate(level.placed(blocks[block]).tolist()):
                        cells[top + down][left : left + len(row)] = row
                frame = level.frame
                levels.append(_level([frame.left, frame.top, frame.right, frame.bottom], cells))
        found.append(
            {
                "source": _address(known.picture) if known.picture is not None else "",
                "size": size,
                "levels": levels,
                "reason": known.reason,
            }
        )
    return found


def _sheet(frames: list[NDArray[Any]]) -> NDArray[Any]:
    """The frames of a video side by side and one row of them below another; -1 where there is none."""
    rows, cols = frames[0].shape
    across = min(len(frames), math.ceil(math.sqrt(len(frames) * rows / cols)))
    sheet = np.full((-(-len(frames) // across) * rows, across * cols), -1)
    for number, frame in enumerate(frames):
        top, left = number // across * rows, number % across * cols
        sheet[top : top + rows, left : left + cols] = frame
    return sheet


def _unplaced(blocks: list[list[list[int]]]) -> tuple[tuple[int, int], list[dict[str, Any]]]:
    """Where nobody knows the picture, patches are shown as the grid they are."""
    rows, cols = max(len(block) for block in blocks), max(len(block[0]) for block in blocks)
    size = (24 * cols, 24 * rows)
    return size, [_level([0, 0, *size], block) for block in blocks]


def _level(frame: list[float], cells: list[list[int]]) -> dict[str, Any]:
    return {
        "frame": frame,
        "rows": len(cells),
        "cols": len(cells[0]),
        "keys": [key for row in cells for key in row],
    }


def _address(picture: Image) -> str:
    shown = picture.convert("RGB")
    if max(shown.size) > _MOST_PIXELS:
        scale = _MOST_PIXELS / max(shown.size)
        shown = shown.resize(tuple(max(1, round(edge * scale)) for edge in shown.size))  # type: ignore[arg-type]
    kind = "PNG" if shown.width * shown.height <= 256 * 256 else "JPEG"
    buffer = io.BytesIO()
    shown.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
