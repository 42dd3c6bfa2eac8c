"""The toy's sizes, and its untrained model: a stock LLaVA with a CLIP tower and a grouped-query Llama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

_QUIET = 0.01  # how large the first layer's outputs start, of their usual size
_ROPE_THETA = 1e5  # slow enough that a word still recognizes its patches across the whole picture


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the toy's model.

    Attributes:
        image: Side of a picture in pixels.
        patch: Side of a patch in pixels; ``(image / patch)**2`` image tokens.
        vision_width: Width of the vision tower.
        vision_layers: Layers of the vision tower; the last one's output feeds the projector.
        vision_heads: Attention heads of the vision tower.
        width: Width of the language model.
        layers: Layers of the language model.
        heads: Query heads of the language model.
        kv_heads: Key-value heads of the language model, each read by ``heads / kv_heads`` query heads.
        inner: Width of the language model's feed-forward layers.
    """

    image: int = 144
    patch: int = 12
    vision_width: int = 128
    vision_layers: int = 4
    vision_heads: int = 4
    width: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    inner: int = 320

    @property
    def patches(self) -> int:
        """Image tokens per picture."""
        return (self.image // self.patch) ** 2


@dataclass(frozen=True)
class TokenIds:
    """The ids the configuration needs from the tokenizer."""

    vocab: int
    bos: int
    eos: int
    pad: int
    image: int


def build_config(sizes: ModelSizes, ids: TokenIds) -> LlavaConfig:
    """Returns the configuration of the toy."""
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        projection_dim=sizes.vision_width,
    )
    text = LlamaConfig(
        vocab_size=ids.vocab,
        hidden_size=sizes.width,
        intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=1024,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
        pad_token_id=ids.pad,
        rope_parameters={"rope_type": "default", "rope_theta": _ROPE_THETA},
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids.image,
        image_seq_length=sizes.patches,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        pad_token_id=ids.pad,
        bos_token_id=ids.bos,
        eos_token_id=ids.eos,
    )


def build_model(sizes: ModelSizes, ids: TokenIds, seed: int) -> Any:
    """Returns the untrained model, weights as the training needs them.

    The language model starts at standard deviation ``1 / sqrt(width)`` with the key projection of every group equal
    to its first query head's projection, so that equal tokens attract each other from the start. In the layers
    from the second to the middle the columns that the rotary embedding turns slowly start large and the others small,
    so that a word is drawn to its patches, far away, nearly as much as to itself. The first layer, in which a word
    cannot know yet which of two pictures it is about, starts the other way round and with little to say. The output
    layer starts equal to the embeddings, so that what is attended to is also what is said.

    Args:
        sizes: The model's sizes.
        ids: Special token ids and the vocabulary size.
        seed: Seed of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(build_config(sizes, ids)).float()
        _start_text(model.model.language_model, model.lm_head, sizes)
    return model.eval()


@torch.no_grad()
def _start_text(text: Any, lm_head: torch.nn.Linear, sizes: ModelSizes) -> None:
    scale = sizes.width**-0.5
    for name, weight in text.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0, sizes.inner**-0.5 if "down_proj" in name else scale)
    head = sizes.width // sizes.heads
    group = sizes.heads // sizes.kv_heads
    slow = _slow_columns(head, sizes.patches)
    for number, layer in enumerate(text.layers):
        query, key = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        queries = query.view(sizes.kv_heads, group, head, -1)
        if number == 0:
            queries *= torch.where(slow, 0.3, 2.0)[:, None]
            layer.self_attn.o_proj.weight.mul_(_QUIET)
            layer.mlp.down_proj.weight.mul_(_QUIET)
        elif number <= sizes.layers // 2:
            queries *= torch.where(slow, 1.3, 0.3)[:, None]
        key.view(sizes.kv_heads, head, -1).copy_(queries[:, 0])
    lm_head.weight.copy_(text.embed_tokens.weight)


def _slow_columns(head: int, reach: int) -> torch.Tensor:
    """Which of a head's columns its rotary embedding turns by less than one radian over ``reach`` positions."""
    turns = _ROPE_THETA ** (-torch.arange(head // 2) / (head // 2))
    return (turns * reach < 1).repeat(2)
