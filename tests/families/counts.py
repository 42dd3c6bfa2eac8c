"""How processors write out an image, by their own rules, for those that cannot be loaded without torchvision.

Each rule is written from the processor's own statement of it (transformers 5.23) and compared with the processor in
`tests.families.test_more_processors` wherever torchvision is installed.
"""

from __future__ import annotations

import math

import torch

from tests.families.more_processors import BREAK, END, IMAGE, START

Size = tuple[int, int]


def mistral3(size: Size) -> tuple[list[str], Size]:
    """Scaled down to 1540 pixels, then up to whole patches of 28; a break after each row, the end after the last."""
    height, width = size
    ratio = max(height / 1540, width / 1540)
    if ratio > 1:
        height, width = math.floor(height / ratio), math.floor(width / ratio)
    rows, cols = math.ceil(height / 28), math.ceil(width / 28)
    words = ([IMAGE] * cols + [BREAK]) * rows
    return [*words[:-1], END], (rows * 28, cols * 28)


def cohere2_vision(size: Size) -> tuple[list[str], int]:
    """The canvas of up to 12 tiles that needs the least scaling up, else the least scaling down; then a thumbnail."""
    height, width = size
    canvases = sorted(
        ((w, h) for w in range(1, 13) for h in range(1, 13) if w * h <= 12),
        key=lambda place: place[0] * place[1],
    )
    scales = [min(w * 512 / width, h * 512 / height) for w, h in canvases]
    fitting = [scale for scale in scales if scale >= 1]
    wanted = min(fitting) if fitting else max(scales)
    across, down = canvases[scales.index(wanted)]
    tiles = across * down
    count = tiles + 1 if tiles > 1 else 1
    return [START, *([IMAGE] * 256 + [BREAK]) * count, END], count


def llama4(size: Size) -> tuple[list[str], int]:
    """The canvas of up to 16 tiles of 336 that needs the least scaling up, else down, of equal ones the smallest."""
    height, width = size
    canvases = [(rows, cols) for rows in range(1, 17) for cols in range(1, 17) if rows * cols <= 16]
    scales = {(rows, cols): min(rows * 336 / height, cols * 336 / width) for rows, cols in canvases}
    fitting = [scale for scale in scales.values() if scale >= 1]
    wanted = min(fitting) if fitting else max(scales.values())
    rows, cols = min((one for one in canvases if scales[one] == wanted), key=lambda one: one[0] * one[1])
    tile = ["<|patch|>"] * 144
    words = ["<|image_start|>"]
    if rows * cols > 1:
        for _ in range(rows):
            for col in range(cols):
                words += [*tile, *["<|tile_x_separator|>"] * (col < cols - 1)]
            words += ["<|tile_y_separator|>"]
    count = rows * cols + 1 if rows * cols > 1 else 1
    return [*words, "<|image|>", *tile, "<|image_end|>"], count


def lfm2_vl(size: Size) -> tuple[list[str], int]:
    """A thumbnail of 64 to 256 tokens of 32 pixels, after 2 to 10 tiles of 256 tokens where the picture is large."""
    height, width = size
    down, across = (max(32, round(side / 32) * 32) for side in size)
    if down * across > 256 * 1024:
        shrink = math.sqrt(height * width / (256 * 1024))
        down, across = (max(32, math.floor(side / shrink / 32) * 32) for side in size)
    elif down * across < 64 * 1024:
        grow = math.sqrt(64 * 1024 / (height * width))
        down, across = (math.ceil(side * grow / 32) * 32 for side in size)
    thumbnail = [IMAGE] * (math.ceil(down // 16 / 2) * math.ceil(across // 16 / 2))
    rows, cols = _lfm2_tiles(height, width)
    words = [START]
    for row in range(rows):
        for col in range(cols):
            words += [f"<|img_row_{row + 1}_col_{col + 1}|>", *[IMAGE] * 256]
    return [*words, *["<|img_thumbnail|>"] * (rows > 0), *thumbnail, END], rows * cols + 1


def _lfm2_tiles(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tiles of 512 pixels; none where the picture has less than twice the largest thumbnail."""
    rounded = [max(16, round(side / 32) * 32) for side in (height, width)]
    if rounded[0] * rounded[1] <= 2 * 256 * 1024:
        return 0, 0
    shapes = {
        (w, h) for n in range(2, 11) for w in range(1, n + 1) for h in range(1, n + 1) if 2 <= w * h <= 10
    }
    best, least = (1, 1), math.inf
    for cols, rows in sorted(shapes, key=lambda one: one[0] * one[1]):
        distance = abs(width / height - cols / rows)
        if distance < least or (distance == least and height * width > 0.5 * 512 * 512 * cols * rows):
            best, least = (cols, rows), distance
    return best[1], best[0]


def molmo2(size: Size) -> tuple[list[str], list[int]]:
    """The whole image in 14 x 14 windows, then a canvas of up to 8 crops in windows of 2 x 2 patches.

    Crops of 27 patches overlap by 8, and what they add to one another is 19: the canvas of crops that needs the least
    scaling up, else the least scaling down, for the picture without the 8 patches around it; of equal ones the smaller.
    A picture smaller than these has sides below 0, which no canvas fits.
    """
    inner = [torch.tensor(float(side - 8 * 14)) for side in size]
    crops = sorted(
        ((down, across) for down in range(1, 9) for across in range(1, 9) if down * across <= 8),
        key=lambda one: (one[0] * one[1], one[0]),
    )
    scales = [min(float(count * 266 / side) for count, side in zip(one, inner)) for one in crops]
    fitting = [scale for scale in scales if scale >= 1]
    down, across = crops[scales.index(min(fitting) if fitting else max(scales))]
    rows, cols = (math.ceil((19 * count + 8) / 2) for count in (down, across))
    low = ["<low_res_im_start>", *["<im_patch>"] * 196, "<im_end>"]
    return [*low, "<im_start>", *([*["<im_patch>"] * cols, "<im_col>"] * rows), "<im_end>"], [
        14,
        14,
        rows,
        cols,
    ]


RULES = {
    "mistral3": mistral3,
    "cohere2_vision": cohere2_vision,
    "llama4": llama4,
    "lfm2_vl": lfm2_vl,
    "molmo2": molmo2,
}
