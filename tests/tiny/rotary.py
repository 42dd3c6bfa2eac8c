"""GLM-4V, GLM-4.6V and Qwen3.5: any resolution, rotary positions in three directions."""

from __future__ import annotations

from typing import Any

import transformers

from tests.tiny.first import grid_images, qwen_picture, qwen_rope
from tests.tiny.parts import END, IMAGE, START, VIDEO, Kit, centred_norms, token_types


def _glm(name: str, text: dict[str, Any], _: dict[str, Any], rest: dict[str, Any]) -> Any:
    config, hidden = (
        {
            "glm4v": transformers.Glm4vConfig,
            "glm46v": transformers.Glm46VConfig,
        }[name],
        text["hidden_size"],
    )
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
        "image_size": 16,
        "out_hidden_size": hidden,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    rope = qwen_rope(text) | {"partial_rotary_factor": 0.5}
    half = sum(rope["mrope_section"]) // 2
    rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3] if half >= 3 else [half, 0, 0]
    return config(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        **rest,
    )


def _qwen3_5(text: dict[str, Any], _: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    rope = qwen_rope(text) | {"partial_rotary_factor": 1.0, "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 16,
    }
    kinds = [
        "full_attention" if index % 2 else "linear_attention" for index in range(text["num_hidden_layers"])
    ]
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_conv_kernel_dim": 4,
    }
    return transformers.Qwen3_5Config(
        text_config=text | linear | {"rope_parameters": rope, "head_dim": head_dim, "layer_types": kinds},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
        **rest,
    )


def _kit(model: str, config: Any) -> Kit:
    marks = ((START,), (END,))
    return Kit(model, config, qwen_picture, grid_images, marks, per_token=token_types, finish=centred_norms)


KITS = {
    "glm4v": _kit("Glm4vForConditionalGeneration", lambda *parts: _glm("glm4v", *parts)),
    "glm46v": _kit("Glm46VForConditionalGeneration", lambda *parts: _glm("glm46v", *parts)),
    "qwen3_5": _kit("Qwen3_5ForConditionalGeneration", _qwen3_5),
}
