"""How processors write out an image, by their own rules, for those that cannot be loaded without torchvision.

Each rule is written from the processor's own statement of it (transformers 5.23) and compared with the processor in
`tests.families.test_more_processors` wherever torchvision is installed.
"""

from __future__ import annotations

import math

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


RULES = {"mistral3": mistral3, "cohere2_vision": cohere2_vision}
