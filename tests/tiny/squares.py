"""Gemma 3, PaliGemma and Janus: one square grid for every image."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny.parts import END, IMAGE, START, Kit, Noise, Picture, centred_norms

EDGE = 12


def layer_types(text: dict[str, Any], full: int = 2) -> list[str]:
    """Sliding layers, and every `full`-th one that attends to all."""
    return [
        "full_attention" if index % full == full - 1 else "sliding_attention"
        for index in range(text["num_hidden_layers"])
    ]


def _gemma3(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(
            **text,
            head_dim=head_dim,
            query_pre_attn_scalar=head_dim,
            sliding_window=14,
            layer_types=layer_types(text),
        ),
        vision_config=transformers.SiglipVisionConfig(**vision, image_size=EDGE, vision_use_head=False),
        mm_tokens_per_image=9,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        **rest,
    )


def _paligemma(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    hidden = text["hidden_size"]
    return transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**text, head_dim=head_dim),
        vision_config=transformers.SiglipVisionConfig(
            **vision, image_size=6, vision_use_head=False, projection_dim=hidden
        ),
        projection_dim=hidden,
        image_token_index=IMAGE,
        **rest,
    )


def _janus(text: dict[str, Any], vision: dict[str, Any], rest: dict[str, Any]) -> Any:
    vision = {key: value for key, value in vision.items() if key != "intermediate_size"}
    vq = {
        "embed_dim": 8,
        "num_embeddings": 8,
        "latent_channels": 8,
        "base_channels": 32,
        "channel_multiplier": [1],
        "num_res_blocks": 1,
        "projection_dim": 16,
        "image_token_embed_dim": text["hidden_size"],
    }
    return transformers.JanusConfig(
        text_config=transformers.LlamaConfig(**text),
        vision_config=transformers.JanusVisionConfig(
            **vision, image_size=8, mlp_ratio=2, projection_dim=text["hidden_size"], num_image_tokens=16
        ),
        vq_config=transformers.JanusVQVAEConfig(**vq),
        image_token_id=IMAGE,
        **rest,
    )


def _square(edge: int, tokens: int) -> Any:
    def picture(config: Any, number: int, noise: Noise) -> Picture:
        return Picture(noise(1, 3, edge, edge), tokens=tokens, blocks=[(isqrt(tokens), isqrt(tokens))])

    return picture


def _image_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": (ids == IMAGE).int()}


def _prefix_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {"token_type_ids": torch.zeros_like(ids)}


KITS = {
    "gemma3": Kit(
        "Gemma3ForConditionalGeneration",
        _gemma3,
        _square(EDGE, 9),
        marks=((START,), (END,)),
        per_token=_image_types,
        finish=centred_norms,
    ),
    "paligemma": Kit(
        "PaliGemmaForConditionalGeneration",
        _paligemma,
        _square(6, 9),
        per_token=_prefix_types,
        finish=centred_norms,
    ),
    "janus": Kit("JanusForConditionalGeneration", _janus, _square(8, 16), marks=((START,), (END,))),
}
