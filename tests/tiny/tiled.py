"""SmolVLM, Idefics3, Aya Vision, Cohere2 Vision, Ovis2 and Mistral 3: images cut into tiles or rows by markers."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.parts import BREAK, END, IMAGE, START, TAG, Kit, Noise, Picture
from tests.tiny.squares import layer_types

ROW, NEWLINE, FIRST_TAG = 9, 90, 91  # words of the vocabulary, as a newline is one
GRIDS = [(0, 0), (1, 2), (2, 2), (3, 1)]
"""Rows and columns of tiles; none at the first, which shows the whole image alone."""
SIZES = [(4, 6), (2, 4), (8, 4), (2, 10)]
"""Patches from top to bottom and from left to right."""


def _idefics3(kind: str, text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    config, encoder = {
        "idefics3": (transformers.Idefics3Config, transformers.Idefics3VisionConfig),
        "smolvlm": (transformers.SmolVLMConfig, transformers.SmolVLMVisionConfig),
    }[kind]
    return config(
        text_config=transformers.LlamaConfig(**text),
        vision_config=encoder(**vision, image_size=12),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=text["pad_token_id"],
        **rest,
    )


def _split_picture(config: Any, number: int, noise: Noise) -> Picture:
    """As the processor writes it: a frame token and a tag before every tile, a newline after every row of tiles."""
    rows, cols = GRIDS[number % len(GRIDS)]
    tile = [IMAGE] * 9
    ids: list[int] = []
    for row in range(rows):
        for col in range(cols):
            ids += [START, FIRST_TAG + row * cols + col, *tile]
        ids += [NEWLINE]
    ids += [NEWLINE] * (rows > 0) + [START, TAG, *tile, START]
    count = rows * cols + 1
    return _tiled(noise, count, ids, _places(rows, cols))


def _tiled(noise: Noise, count: int, ids: list[int], tiles: Any = None) -> Picture:
    pixels = noise(count, 3, 12, 12)
    return Picture(pixels, tokens=9 * count, ids=ids, blocks=[(3, 3)] * count, tiles=tiles)


def _places(rows: int, cols: int) -> list[tuple[int, int]]:
    return [(row, col) for row in range(rows) for col in range(cols)]


def _nested(rows: list[list[Picture]]) -> dict[str, Tensor]:
    """`(batch, tiles, 3, height, width)`, with zeros where a row has fewer tiles than others."""
    if not any(rows):
        return {}
    most = max(sum(len(picture.pixels) for picture in pictures) for pictures in rows)
    shape = next(picture for pictures in rows for picture in pictures).pixels.shape[1:]
    padded = torch.zeros(len(rows), most, *shape)
    for place, pictures in enumerate(rows):
        tiles = [tile for picture in pictures for tile in picture.pixels]
        if tiles:
            padded[place, : len(tiles)] = torch.stack(tiles)
    return {"pixel_values": padded}


def _siglip(vision: dict[str, Any], edge: int) -> Any:
    return transformers.SiglipVisionConfig(**vision, image_size=edge, vision_use_head=False)


def _cohere2(text: dict[str, Any]) -> Any:
    return transformers.Cohere2Config(
        **text, sliding_window=14, layer_types=layer_types(text), logit_scale=0.25
    )


def _aya(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    return transformers.AyaVisionConfig(
        text_config=_cohere2(text),
        vision_config=_siglip(vision, 12),
        vision_feature_layer=-1,
        downsample_factor=2,
        alignment_intermediate_size=32,
        image_token_index=IMAGE,
        **rest,
    )


def _cohere(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    return transformers.Cohere2VisionConfig(
        text_config=_cohere2(text),
        vision_config=_siglip(vision, 12),
        downsample_factor=2,
        alignment_intermediate_size=32,
        image_token_id=IMAGE,
        **rest,
    )


def _ovis2(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    return transformers.Ovis2Config(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.Ovis2VisionConfig(
            **vision, image_size=12, hidden_stride=2, vocab_size=40, tokenize_function="softmax"
        ),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, BREAK, TAG, ROW, END],
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        **rest,
    )


def _mistral3(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**text, sliding_window=None, head_dim=head_dim),
        vision_config=transformers.PixtralVisionConfig(**vision, image_size=40, head_dim=8),
        vision_feature_layer=-1,
        spatial_merge_size=2,
        image_token_index=IMAGE,
        **rest,
    )


def _aya_picture(config: Any, number: int, noise: Noise) -> Picture:
    rows, cols = GRIDS[number % len(GRIDS)]
    ids = [START]
    for tile in range(rows * cols):
        ids += [FIRST_TAG + tile, *[IMAGE] * 9]
    count = rows * cols + 1
    return _tiled(noise, count, [*ids, TAG, *[IMAGE] * 9, END])


def _cohere_picture(config: Any, number: int, noise: Noise) -> Picture:
    rows, cols = GRIDS[number % len(GRIDS)]
    count = rows * cols + 1
    return _tiled(noise, count, [START, *([IMAGE] * 9 + [BREAK]) * count, END])


def _ovis_picture(config: Any, number: int, noise: Noise) -> Picture:
    """The whole image first, then its tiles; START, BREAK (grid), TAG (column), ROW and END are indicators."""
    rows, cols = GRIDS[number % len(GRIDS)]
    tile = [IMAGE] * 9
    ids = [START, *tile, BREAK]
    for row in range(rows):
        for col in range(cols):
            ids += [*tile, *[TAG] * (col < cols - 1)]
        ids += [ROW] * (row < rows - 1)
    count = rows * cols + 1
    return _tiled(noise, count, [*ids, END], _places(rows, cols))


def _rows_picture(config: Any, number: int, noise: Noise) -> Picture:
    height, width = SIZES[number % len(SIZES)]
    rows, cols = height // 2, width // 2
    ids = ([IMAGE] * cols + [BREAK]) * rows
    size = (2 * height, 2 * width)
    return Picture(noise(1, 3, 20, 20), size, rows * cols, ids=[*ids[:-1], END], blocks=[(rows, cols)])


def _sized(rows: list[list[Picture]]) -> dict[str, Tensor]:
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    return {
        "pixel_values": torch.cat([picture.pixels for picture in flat]),
        "image_sizes": torch.tensor([picture.size for picture in flat]),
    }


def _idefics3_kit(name: str, model: str) -> Kit:
    def config(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
        return _idefics3(name, text, vision, rest)

    return Kit(model, config, _split_picture, _nested)


KITS = {
    "smolvlm": _idefics3_kit("smolvlm", "SmolVLMForConditionalGeneration"),
    "idefics3": _idefics3_kit("idefics3", "Idefics3ForConditionalGeneration"),
    "aya_vision": Kit("AyaVisionForConditionalGeneration", _aya, _aya_picture),
    "cohere2_vision": Kit("Cohere2VisionForConditionalGeneration", _cohere, _cohere_picture),
    "ovis2": Kit("Ovis2ForConditionalGeneration", _ovis2, _ovis_picture, owns_marks=True),
    "mistral3": Kit("Mistral3ForConditionalGeneration", _mistral3, _rows_picture, _sized),
}
