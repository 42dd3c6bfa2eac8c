"""LLaVA, LLaVA-NeXT, LLaVA-OneVision, ViP-LLaVA, InternVL and Qwen2-VL to Qwen3-VL: every kind of grid there is."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.parts import END, IMAGE, START, VIDEO, Kit, Noise, Picture, token_types

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

# Height and width in pixels (for Qwen: in patches), odd and thin ones among them. Every row draws from these.
SIZES: dict[str, list[tuple[int, int]]] = {
    "llava_next": [(13, 7), (8, 8), (5, 21), (30, 1), (9, 17), (1, 40)],
    "llava_onevision": [(11, 5), (6, 6), (24, 24), (1, 36), (7, 18), (35, 1), (30, 13)],
    "qwen": [(4, 6), (2, 2), (6, 2), (2, 10), (8, 4)],
}
TILES = [1, 3, 5]  # InternVL: one tile, or some tiles and their thumbnail
_BASE = {"image_token_index": IMAGE, "vision_feature_layer": -1}


def _llava(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    clip = transformers.CLIPVisionConfig(**vision, image_size=10)
    llama = transformers.LlamaConfig(**text)
    return transformers.LlavaConfig(text_config=llama, vision_config=clip, **_BASE | rest)


def _vipllava(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    clip = transformers.CLIPVisionConfig(**vision, image_size=10)
    llama = transformers.LlamaConfig(**text)
    config = transformers.VipLlavaConfig(
        text_config=llama, vision_config=clip, **{"image_token_index": IMAGE} | rest
    )
    config.vision_feature_layers = [-1, -2]  # newer versions of transformers keep it as vision_feature_layer
    return config


def _llava_next(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    tiles = [[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]]
    return transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**text, sliding_window=None),
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8),
        **_BASE | {"image_grid_pinpoints": tiles} | rest,
    )


def _llava_onevision(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    tiles = [[6 * rows, 6 * cols] for rows in range(1, 7) for cols in range(1, 7)]
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=6, vision_use_head=False),
        **_BASE | {"image_grid_pinpoints": tiles, "video_token_index": VIDEO} | rest,
    )


def _internvl(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    return transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**text),
        vision_config=transformers.InternVLVisionConfig(
            **vision | {"image_size": [16, 16], "patch_size": [2, 2]}
        ),
        image_token_id=IMAGE,
        image_seq_length=16,
        **rest,
    )


def qwen_rope(text: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings with sections for time, height and width."""
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    quarter = head_dim // 8
    sections = [head_dim // 2 - 2 * quarter, quarter, quarter]
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}


def _qwen(name: str, text: dict[str, Any], _: dict[str, Any], rest: dict[str, Any]) -> Any:
    rope, hidden = qwen_rope(text), text["hidden_size"]
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2, "in_channels": 3, "patch_size": 4}
    rest = rest | {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    if name == "qwen2_vl":
        return transformers.Qwen2VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision | {"embed_dim": 16, "hidden_size": hidden, "mlp_ratio": 2},
            **rest,
        )
    vision |= {"hidden_size": 16, "intermediate_size": 32, "out_hidden_size": hidden}
    if name == "qwen2_5_vl":
        return transformers.Qwen2_5_VLConfig(
            text_config=text | {"rope_parameters": rope},
            vision_config=vision | {"window_size": 16, "fullatt_block_indexes": [1]},
            **rest,
        )
    head_dim = hidden // text["num_attention_heads"]
    return transformers.Qwen3VLConfig(
        text_config=text | {"rope_parameters": rope | {"mrope_interleaved": True}, "head_dim": head_dim},
        vision_config=vision | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **rest,
    )


def _square(config: Any, number: int, noise: Noise) -> Picture:
    return Picture(noise(1, 3, 10, 10))


def _tiles(config: Any, number: int, noise: Noise) -> Picture:
    return Picture(noise(TILES[number % len(TILES)], 3, 16, 16))


def qwen_picture(config: Any, number: int, noise: Noise) -> Picture:
    """Patches of 4 pixels, two frames each, as Qwen's processors flatten them."""
    height, width = SIZES["qwen"][number % len(SIZES["qwen"])]
    blocks = [(height // 2, width // 2)]
    return Picture(noise(height * width, 3 * 2 * 4 * 4), (1, height, width), blocks=blocks)


def anyres_picture(name: str, config: Any, number: int, noise: Noise) -> Picture:
    """A picture and its tiles at the best resolution."""
    size = SIZES[name][number % len(SIZES[name])]
    edge = config.vision_config.image_size
    best = transformers.image_processing_utils.select_best_resolution(size, config.image_grid_pinpoints)
    return Picture(noise(1 + (best[0] // edge) * (best[1] // edge), 3, edge, edge), size)


def grid_images(rows: list[list[Picture]]) -> dict[str, Tensor]:
    """Patches of all images one after another, and `image_grid_thw`."""
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    return {
        "pixel_values": torch.cat([picture.pixels for picture in flat]),
        "image_grid_thw": torch.tensor([picture.size for picture in flat]),
    }


def anyres_images(rows: list[list[Picture]], per_row: bool = False) -> dict[str, Tensor]:
    """Tiles padded to the most of the batch, and `image_sizes`."""
    flat = [picture for pictures in rows for picture in pictures]
    if not flat:
        return {}
    tiles = max(len(picture.pixels) for picture in flat)
    pixels = [torch.nn.functional.pad(p.pixels, (0, 0) * 3 + (0, tiles - len(p.pixels))) for p in flat]
    inputs = {"pixel_values": torch.stack(pixels), "image_sizes": torch.tensor([p.size for p in flat])}
    if per_row:
        inputs["batch_num_images"] = torch.tensor([len(pictures) for pictures in rows])
    return inputs


def _qwen_kit(name: str, model: str) -> Kit:
    return Kit(
        model, partial(_qwen, name), qwen_picture, grid_images, ((START,), (END,)), per_token=token_types
    )


KITS = {
    "llava": Kit("LlavaForConditionalGeneration", _llava, _square),
    "llava_next": Kit(
        "LlavaNextForConditionalGeneration",
        _llava_next,
        partial(anyres_picture, "llava_next"),
        anyres_images,
    ),
    "llava_onevision": Kit(
        "LlavaOnevisionForConditionalGeneration",
        _llava_onevision,
        partial(anyres_picture, "llava_onevision"),
        partial(anyres_images, per_row=True),
    ),
    "vipllava": Kit("VipLlavaForConditionalGeneration", _vipllava, _square),
    "internvl": Kit("InternVLForConditionalGeneration", _internvl, _tiles, marks=((START,), (END,))),
    "qwen2_vl": _qwen_kit("qwen2_vl", "Qwen2VLForConditionalGeneration"),
    "qwen2_5_vl": _qwen_kit("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": _qwen_kit("qwen3_vl", "Qwen3VLForConditionalGeneration"),
}
