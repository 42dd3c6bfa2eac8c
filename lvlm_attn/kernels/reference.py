"""The definition of attention with edits: plain torch, any dtype, the whole weight matrix. Slow on purpose."""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import Geometry, Redistribution, class_indicator, redistribution_gains


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    geometry: Geometry,
    redistribution: Redistribution | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes causal attention with an optional redistribution, head by head over the whole matrix.

    Args:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`; heads share keys in groups of heads / kv_heads.
        value: `(batch, kv_heads, keys, head_dim)`.
        scaling: factor on the scores.
        geometry: where the queries and keys stand.
        redistribution: what to move between keys, or None for plain attention.

    Returns:
        The outputs `(batch, heads, queries, head_dim)` and the weights `(batch, heads, queries, keys)`. A row
        that may read no key has weights 0 and output 0.

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
    readable = geometry.may_read(index)
    scores = query @ key.transpose(-1, -2) * scaling
    if readable is not None:
        scores = scores.masked_fill(~readable[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    if redistribution is not None:
        indicator = class_indicator(geometry.to_columns(redistribution.key_class), weights.dtype)
        masses = torch.einsum("bhqk,bck->bhqc", weights, indicator)
        gains, is_changed = redistribution_gains(masses, redistribution)
        is_changed &= redistribution.is_touched[:, None]
        edited = weights * torch.einsum("bhqc,bck->bhqk", gains, indicator)
        weights = torch.where(is_changed[..., None], edited, weights)
    return weights @ value, weights
