"""The toy's language model as its training needs it: what no answer depends on is not computed.

The numbers are those of transformers' Llama, of which this is a leaner reading: pictures stand first, so that
conversations about the same pictures share them; the last layer runs at the answers alone; projections of the same
input are one product.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_attn.toy.gaze import Gaze

_Rotation: TypeAlias = tuple[Tensor, Tensor]


def lean_hidden(
    text: Any, opening: Tensor, words: Tensor, is_asked: Tensor, gaze: Gaze | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Last hidden states at chosen positions of conversations, some of which begin with the same pictures.

    Args:
        text: The toy's language model, a Llama without biases.
        opening: (openings, first, width) embeddings of what stands before the words, pictures included.
        words: (conversations, length, width) embeddings of the words; conversation ``r`` goes on from opening
            ``r // (conversations // openings)``.
        is_asked: (conversations, length) bool, where hidden states are asked for.
        gaze: Where words are to look, and where not; None if that is not asked.

    Returns:
        (asked positions, width), row by row; and what ``gaze.losses`` gives.
    """
    first, length = opening.shape[1], words.shape[1]
    shares = len(words) // len(opening)
    places = torch.arange(first + length, device=words.device)
    cos, sin = (table[0] for table in text.rotary_emb(words, places[None]))
    early, late = (cos[:first], sin[:first]), (cos[first:], sin[first:])
    is_seen = torch.ones(length, first + length, dtype=torch.bool, device=words.device).tril(first)
    seen: list[Tensor | None] = []
    numbers: Tensor | None = None
    *lower, last = text.layers
    for number, layer in enumerate(lower):
        attention = layer.self_attn
        query, key, value = _project(attention, layer.input_layernorm(opening), early)
        own_query, own_key, own_value = _project(attention, layer.input_layernorm(words), late)
        keys, values = _after(key, own_key, shares), _after(value, own_value, shares)
        if number == 0 and gaze is not None and gaze.which is not None:
            is_before = torch.ones(first, first, dtype=torch.bool, device=words.device).tril()
            mixed, numbers = _weigh(attention, query, key, value, is_before)
        else:
            mixed = _attend(attention, query, key, value)
        opening = _finish(layer, opening, mixed.transpose(1, 2))
        mixed, looked = _look(attention, own_query, keys, values, is_seen, gaze, number)
        seen.append(looked)
        words = _finish(layer, words, mixed.transpose(1, 2))
    attention = last.self_attn
    key, value = _keys(attention, last.input_layernorm(opening), early)
    own_query, own_key, own_value = _project(attention, last.input_layernorm(words), late)
    keys, values = _after(key, own_key, shares), _after(value, own_value, shares)
    mixed, looked = _look(attention, own_query, keys, values, is_seen, gaze, len(lower))
    hidden = text.norm(_finish(last, words[is_asked], mixed.transpose(1, 2)[is_asked]))
    return hidden, {} if gaze is None else gaze.losses([*seen, looked], numbers)


def _after(early: Tensor, late: Tensor, shares: int) -> Tensor:
    """Keys or values of openings and of the words after them: (conversations, heads, first + length, head size)."""
    return torch.cat((early.repeat_interleave(shares, 0), late), 2)


def _project(attention: Any, normed: Tensor, rotation: _Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Rotated queries and keys, and values, each (batch, heads, length, head size)."""
    weights = [linear.weight for linear in (attention.q_proj, attention.k_proj, attention.v_proj)]
    queries, size = len(weights[0]) // attention.head_dim, attention.head_dim
    made = _heads(F.linear(normed, torch.cat(weights)), size)
    turned = queries + len(weights[1]) // size
    rotated = _rotate(made[:, :turned], rotation)
    return rotated[:, :queries], rotated[:, queries:], made[:, turned:]


def _keys(attention: Any, normed: Tensor, rotation: _Rotation) -> tuple[Tensor, Tensor]:
    """Rotated keys, and values, where no query is needed."""
    weights = torch.cat((attention.k_proj.weight, attention.v_proj.weight))
    key, value = _heads(F.linear(normed, weights), attention.head_dim).chunk(2, 1)
    return _rotate(key, rotation), value


def _heads(rows: Tensor, size: int) -> Tensor:
    """(batch, heads, length, head size)."""
    return rows.view(*rows.shape[:-1], -1, size).transpose(1, 2)


def _rotate(rows: Tensor, rotation: _Rotation) -> Tensor:
    """Llama's rotary embedding, whose tables are the same in both halves of a head."""
    half = rows.shape[-1] // 2
    cos, sin = (table[:, :half] for table in rotation)
    low, high = rows[..., :half], rows[..., half:]
    return torch.cat((low * cos - high * sin, high * cos + low * sin), -1)


def _attend(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, is_seen: Tensor | None = None
) -> Tensor:
    """Causal attention, or that of a mask (queries, keys)."""
    key, value = (rows.repeat_interleave(attention.num_key_value_groups, 1) for rows in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=is_seen, is_causal=is_seen is None)


def _look(
    attention: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    is_seen: Tensor,
    gaze: Gaze | None,
    layer: int,
) -> tuple[Tensor, Tensor | None]:
    """Attention of the words, and its weights if a gaze wants them of this layer."""
    if gaze is None or not gaze.wants(layer):
        return _attend(attention, query, key, value, is_seen), None
    return _weigh(attention, query, key, value, is_seen)


def _weigh(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, is_seen: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention under a mask (queries, keys), and its weights (conversations, heads, queries, keys)."""
    key, value = (rows.repeat_interleave(attention.num_key_value_groups, 1) for rows in (key, value))
    scores = query @ key.transpose(2, 3) * attention.head_dim**-0.5
    weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
    return weights @ value, weights


def _finish(layer: Any, hidden: Tensor, mixed: Tensor) -> Tensor:
    """What follows the attention of a layer: (..., width) from (..., heads, head size)."""
    hidden = hidden + layer.self_attn.o_proj(mixed.flatten(-2))
    mlp = layer.mlp
    weights = torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight))
    gate, up = F.linear(layer.post_attention_layernorm(hidden), weights).chunk(2, -1)
    left: Tensor = hidden + mlp.down_proj(F.silu(gate) * up)
    return left
