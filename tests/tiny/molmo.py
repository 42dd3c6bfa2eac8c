"""Molmo 2: the whole image in one crop, then a canvas of overlapping crops, both pooled in windows of 2 x 2."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.parts import BREAK, END, IMAGE, START, TAG, Kit, Noise, Picture

EDGE, WINDOW, MARGINS = 6, 3, (2, 1)
"""Patches along a crop, those of them that its neighbours do not show, and its margins."""
CROPS = [(1, 1), (1, 2), (2, 2), (3, 1)]
"""Crops from top to bottom and from left to right."""
MARKS = (START, BREAK, END, TAG)


def _molmo2(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    settings = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    return transformers.Molmo2Config(
        text_config=transformers.models.molmo2.Molmo2TextConfig(
            **text,
            head_dim=head_dim,
            additional_vocab_size=0,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config=transformers.models.molmo2.Molmo2VisionConfig(
            **settings,
            intermediate_size=32,
            num_hidden_layers=vision["num_hidden_layers"],
            patch_size=vision["patch_size"],
            image_size=[EDGE * vision["patch_size"]] * 2,
        ),
        adapter_config=transformers.models.molmo2.Molmo2AdapterConfig(
            **settings,
            vision_feature_layer=[-1, 0],
            intermediate_size=32,
            text_hidden_size=text["hidden_size"],
        ),
        image_start_token_id=START,
        low_res_image_start_token_id=TAG,
        image_end_token_id=END,
        image_patch_id=IMAGE,
        **rest,
    )


def _pooled(canvas: Tensor) -> Tensor:
    """`(rows, cols, 4)`: the numbers of the patches in each window of `(height, width)` patches, -1 behind them."""
    high, wide = (side + side % 2 for side in canvas.shape)
    full = torch.full((high, wide), -1)
    full[: canvas.shape[0], : canvas.shape[1]] = canvas
    return torch.stack([full[i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)


def _canvas(rows: int, cols: int) -> Tensor:
    """Which patch of which crop shows each place of a canvas; the first crop is the whole image."""
    before, _ = MARGINS
    high, wide = rows * WINDOW + sum(MARGINS), cols * WINDOW + sum(MARGINS)
    found = torch.empty(high, wide, dtype=torch.long)
    for y in range(high):
        for x in range(wide):
            down = min(max((y - before) // WINDOW, 0), rows - 1)
            across = min(max((x - before) // WINDOW, 0), cols - 1)
            inside = (y - down * WINDOW) * EDGE + x - across * WINDOW
            found[y, x] = (1 + down * cols + across) * EDGE**2 + inside
    return found


def _picture(config: Any, number: int, noise: Noise) -> Picture:
    """As the published processor writes it: column tokens after the rows of the second view alone."""
    rows, cols = CROPS[number % len(CROPS)]
    low = _pooled(torch.arange(EDGE**2).view(EDGE, EDGE))
    high = _pooled(_canvas(rows, cols))
    ids = [TAG, *[IMAGE] * low[..., 0].numel(), END, START]
    ids += ([IMAGE] * high.shape[1] + [BREAK]) * high.shape[0]
    blocks = [(view.shape[0], view.shape[1]) for view in (low, high)]
    more = {
        "image_token_pooling": torch.cat((low.flatten(0, 1), high.flatten(0, 1))),
        "image_grids": torch.tensor([[side for block in blocks for side in block]]),
        "image_num_crops": torch.tensor([1 + rows * cols]),
    }
    return Picture(
        noise(1 + rows * cols, EDGE**2, 12),
        tokens=ids.count(IMAGE),
        ids=[*ids, END],
        blocks=blocks,
        more=more,
    )


def _images(rows: list[list[Picture]]) -> dict[str, Tensor]:
    """Crops of all images one after another; windows name patches by their number among all of these."""
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    found = {"pixel_values": torch.cat([picture.pixels for picture in flat])}
    windows, before = [], 0
    for picture in flat:
        own = picture.more["image_token_pooling"]
        windows.append(torch.where(own < 0, own, own + before))
        before += picture.pixels[..., 0].numel()
    found["image_token_pooling"] = torch.cat(windows)
    for key in ("image_grids", "image_num_crops"):
        found[key] = torch.cat([picture.more[key] for picture in flat])
    return found


def _types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """1 at image tokens and at all markers of an image."""
    return {"mm_token_type_ids": torch.isin(ids, torch.tensor([IMAGE, *MARKS])).int()}


KITS = {
    "molmo2": Kit(
        "Molmo2ForConditionalGeneration", _molmo2, _picture, _images, owns_marks=True, per_token=_types
    ),
}
