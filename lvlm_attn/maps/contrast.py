"""Contrast maps of a request: where a question makes the model look more than a description would.

Source: Ge et al., "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning" (CARVE, arXiv 2509.06461).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from lvlm_attn.maps.geometry import levels_of
from lvlm_attn.maps.maps import Map, Mask, contrast, pixel_map
from lvlm_attn.maps.reading import Blocks, read_attention

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request

GENERAL = "Write a general description of the image."
Mode = Literal["first", "last", "all"]


@dataclass(frozen=True, eq=False)
class ContrastMap:
    """The contrast of one image.

    Attributes:
        map: `(height, width)` in pixels of the image; 0 where the model sees nothing of it.
        is_seen: `(height, width)`, True at pixels that the model sees.
        blocks: per block of the image's grid `(rows, cols)`, before it is spread over pixels.
    """

    map: Map
    is_seen: Mask
    blocks: tuple[Map, ...]


def contrast_maps(
    request: Request,
    layers: Sequence[int],
    *,
    general: str = GENERAL,
    mode: Mode = "first",
    steps: int = 32,
    lam: float = 1e-8,
    lam_rel: float | None = None,
) -> list[list[ContrastMap]]:
    """Contrasts the attention of the request's questions with that of a general instruction.

    Args:
        request: the questions with their images.
        layers: the layers to add up.
        general: the instruction.
        mode: `"first"` takes the step that predicts the first answer token; `"last"` the step of each prompt
            that predicts its end, or the last one allowed; `"all"` pairs the steps of both and weighs step t
            by t.
        steps: the most steps in modes `"last"` and `"all"`.
        lam: see `contrast`.
        lam_rel: see `contrast`.

    Returns:
        Per row and image. Rows without images have none.

    Raises:
        LvlmAttnError: if the request holds no images.
    """
    groups = request.need_images("A contrast map")
    if not any(groups):
        return [[] for _ in groups]
    described = request.asking([general] * request.batch)
    count = 1 if mode == "first" else steps
    asked, told = read_attention([request, described], layers, count)
    return [
        [
            _map_of(request, image, row, place, joined(pair, mode, lam, lam_rel))
            for place, (image, pair) in enumerate(zip(images, zip(asked[row], told[row])))
        ]
        for row, images in enumerate(groups)
    ]


def joined(pair: tuple[Blocks, Blocks], mode: Mode, lam: float, lam_rel: float | None) -> tuple[Map, ...]:
    """Contrasts two records of one image and adds up layers and steps: per block `(rows, cols)`."""
    asked, told = (_flat(item) for item in pair)
    if mode == "last":
        asked, told = asked[-1:], told[-1:]
    steps = min(len(asked), len(told))
    if mode == "first":
        steps = 1
    ratio = contrast(asked[:steps], told[:steps], lam, lam_rel)
    total = (ratio * np.arange(1, steps + 1)[:, None, None]).sum((0, 1))
    blocks, start = [], 0
    for block in pair[0]:
        rows, cols = block.shape[-2:]
        blocks.append(total[start : start + rows * cols].reshape(rows, cols))
        start += rows * cols
    return tuple(blocks)


def _flat(blocks: Blocks) -> Map:
    """`(steps, layers, patches)` of all blocks of an image."""
    return np.concatenate([block.reshape(*block.shape[:2], -1) for block in blocks], -1)


def _map_of(request: Request, image: Any, row: int, place: int, blocks: tuple[Map, ...]) -> ContrastMap:
    target = request.target
    config = cast("Any", target.parts.base).config
    levels = levels_of(request.layout.grids[row][place], image.size, config, target.processor)
    values, is_seen = pixel_map(blocks, levels, image.size)
    return ContrastMap(values, is_seen, blocks)
