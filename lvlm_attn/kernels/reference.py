"""The definition of attention with edits: plain torch, any dtype, the whole weight matrix. Slow on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import (
    Amplification,
    Geometry,
    Redistribution,
    amplified,
    class_indicator,
    redistribution_gains,
)
from lvlm_attn.kernels.visibility import Visibility, allowed_keys


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    geometry: Geometry,
    visibility: Sequence[Visibility] = (),
    amplification: Sequence[Amplification] = (),
    redistribution: Redistribution | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes causal attention with edits, over the whole matrix: mask, scores, then weights.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`; heads share keys in groups of heads / kv_heads.
        value: `(batch, kv_heads, keys, head_dim)`.
        scaling: factor on the scores.
        geometry: where the queries and keys stand.
        visibility: what queries may attend to beyond or below causality.
        amplification: changes of the scores, in order.
        redistribution: what to move between keys, or None to move nothing.

    Returns:
        The outputs `(batch, heads, queries, head_dim)` and the weights `(batch, heads, queries, keys)`. A row
        without any key has weights 0 and output 0.

    Example:
        >>> q = torch.randn(1, 2, 3, 8, dtype=torch.float64)
        >>> out, weights = attention(q, q, q, scaling=8**-0.5, geometry=Geometry(0, 3, 3))
        >>> weights.sum(-1).allclose(torch.ones(1, 2, 3, dtype=torch.float64))
        True
    """
    batch, heads = query.shape[:2]
    group = heads // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    index = torch.arange(geometry.start, geometry.length, device=query.device).expand(batch, -1)
    allowed = geometry.may_attend(index)
    scores = query @ key.transpose(-1, -2) * scaling
    if visibility:
        allowed, bias = allowed_keys(visibility, geometry, index, allowed, scores.dtype)
        scores = scores if bias is None else scores + bias[:, None]
    if allowed is not None:
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
    for change in amplification:
        scores = amplified(scores, change, geometry, change.is_touched)
    weights = scores.softmax(-1).nan_to_num(0.0)
    if redistribution is not None:
        indicator = class_indicator(geometry.to_columns(redistribution.key_class), weights.dtype)
        masses = torch.einsum("bhqk,bck->bhqc", weights, indicator)
        gains, is_changed = redistribution_gains(masses, redistribution)
        is_changed &= redistribution.is_touched[:, None]
        edited = weights * torch.einsum("bhqc,bck->bhqk", gains, indicator)
        weights = torch.where(is_changed[..., None], edited, weights)
    return weights @ value, weights
