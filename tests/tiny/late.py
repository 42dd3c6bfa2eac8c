"""LLaVA-NeXT-Video, Gemma 4, Llama 4, LFM2-VL and Granite 4 Vision."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import transformers

from tests.tiny.first import SIZES, anyres_images, anyres_picture
from tests.tiny.parts import (
    BREAK,
    END,
    IMAGE,
    START,
    TAG,
    VIDEO,
    Kit,
    Noise,
    Picture,
    token_types,
)
from tests.tiny.squares import layer_types
from tests.tiny.tiled import GRIDS, ROW

SIZES["llava_next_video"] = SIZES["granite4_vision"] = SIZES["llava_next"]
PATCHES = [(4, 6), (2, 2), (8, 4), (2, 10)]
"""Patches from top to bottom and from left to right."""


def _llava_next_video(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8),
        vision_feature_layer=-1,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]],
        **rest,
    )


def _granite4(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    last = text["num_hidden_layers"] - 1
    config = transformers.Granite4VisionConfig(
        text_config=transformers.Granite4VisionTextConfig(
            **text,
            attention_multiplier=head_dim**-0.5,
            embedding_multiplier=1.5,
            residual_multiplier=0.75,
            logits_scaling=2.0,
        ),
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=8),
        qformer_config={
            "model_type": "blip_2_qformer",
            "num_hidden_layers": 1,
            "intermediate_size": 32,
            "cross_attention_frequency": 1,
            "use_qformer_text_input": False,
            "vocab_size": 8,
        },
        downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 1]],
        spatial_target_layers=[
            2,
            last,
            last + 1,
            last + 2,
        ],  # features of layers that are not there go nowhere
        projector_dropout=0.0,
        image_token_index=IMAGE,
        image_grid_pinpoints=[[8, 16], [16, 8], [16, 16], [24, 8], [8, 24]],
        **rest,
    )
    # A head is 64 wide by default, and older versions of transformers do not take the encoder's width.
    config.qformer_config.num_attention_heads = 2
    config.qformer_config.hidden_size = config.qformer_config.encoder_hidden_size = vision["hidden_size"]
    return config


def _gemma4(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    kinds = layer_types(text)
    kinds[-1] = "full_attention"
    return transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(
            **text,
            head_dim=head_dim,
            global_head_dim=2 * head_dim,
            sliding_window=14,
            layer_types=kinds,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=text["vocab_size"],
            num_kv_shared_layers=1,
            use_bidirectional_attention="vision",
        ),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            patch_size=2,
            pooling_kernel_size=2,
            position_embedding_size=160,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=BREAK,
        boi_token_id=START,
        eoi_token_id=END,
        **rest,
    )


def _gemma4_picture(config: Any, number: int, noise: Noise) -> Picture:
    height, width = PATCHES[number % len(PATCHES)]
    most, count = 40, height * width
    pixels = torch.zeros(1, most, 12)
    pixels[:, :count] = noise(1, count, 12)
    places = torch.full((1, most, 2), -1)
    rows, cols = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    places[0, :count] = torch.stack((cols, rows), -1)
    return Picture(pixels, tokens=count // 4, more={"image_position_ids": places})


def _llama4(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    return transformers.Llama4Config(
        text_config=transformers.Llama4TextConfig(
            **text,
            head_dim=head_dim,
            intermediate_size_mlp=2 * text["hidden_size"],
            num_local_experts=2,
            moe_layers=[1],
            attention_chunk_size=16,
            no_rope_layer_interval=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config=transformers.Llama4VisionConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vision_output_dim=16,
            image_size=12,
            patch_size=2,
            projector_input_dim=16,
            projector_output_dim=16,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        boi_token_index=START,
        eoi_token_index=END,
        image_token_index=IMAGE,
        **rest,
    )


def _llama4_picture(config: Any, number: int, noise: Noise) -> Picture:
    """Separators between tiles (BREAK) and behind rows of tiles (ROW), then TAG and the whole image."""
    rows, cols = GRIDS[number % len(GRIDS)]
    ids, tile = [START], [IMAGE] * 9
    for _ in range(rows):
        for col in range(cols):
            ids += [*tile, *[BREAK] * (col < cols - 1)]
        ids += [ROW]
    count = rows * cols + 1
    places = [(row, col) for row in range(rows) for col in range(cols)]
    return Picture(
        noise(count, 3, 12, 12),
        tokens=9 * count,
        ids=[*ids, TAG, *tile, END],
        blocks=[(3, 3)] * count,
        tiles=places,
    )


def _lfm2_vl(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    kinds = ["full_attention" if index % 2 else "conv" for index in range(text["num_hidden_layers"])]
    return transformers.Lfm2VlConfig(
        text_config=transformers.Lfm2Config(**text, layer_types=kinds, block_auto_adjust_ff_dim=False),
        vision_config=transformers.Siglip2VisionConfig(**vision, num_patches=64, vision_use_head=False),
        projector_hidden_size=32,
        image_token_id=IMAGE,
        **rest,
    )


def _lfm2_picture(config: Any, number: int, noise: Noise) -> Picture:
    """Tiles of 4 x 4 patches behind tags, then a thumbnail of its own size; or that alone."""
    rows, cols = GRIDS[number % len(GRIDS)]
    shapes = [(4, 4)] * (rows * cols) + [PATCHES[number % len(PATCHES)]]
    ids, pixels, mask = [START], torch.zeros(len(shapes), 40, 12), torch.zeros(len(shapes), 40)
    for place, (height, width) in enumerate(shapes):
        count = height * width
        pixels[place, :count], mask[place, :count] = noise(count, 12), 1
        ids += [TAG] * (len(shapes) > 1) + [IMAGE] * (count // 4)
    more = {"spatial_shapes": torch.tensor(shapes), "pixel_attention_mask": mask.long()}
    return Picture(pixels, tokens=ids.count(IMAGE), ids=[*ids, END], more=more)


KITS = {
    "llava_next_video": Kit(
        "LlavaNextVideoForConditionalGeneration",
        _llava_next_video,
        partial(anyres_picture, "llava_next_video"),
        anyres_images,
    ),
    "granite4_vision": Kit(
        "Granite4VisionForConditionalGeneration",
        _granite4,
        partial(anyres_picture, "granite4_vision"),
        anyres_images,
    ),
    "gemma4": Kit(
        "Gemma4ForConditionalGeneration",
        _gemma4,
        _gemma4_picture,
        marks=((START,), (END,)),
        per_token=token_types,
    ),
    "llama4": Kit("Llama4ForConditionalGeneration", _llama4, _llama4_picture),
    "lfm2_vl": Kit("Lfm2VlForConditionalGeneration", _lfm2_vl, _lfm2_picture),
}
