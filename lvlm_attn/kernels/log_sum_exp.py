"""The log-sum-exp of every row, off the operator that the user's backend runs anyway.

Attention through `torch.nn.functional.scaled_dot_product_attention` ends, on the CPU and often on a GPU, in a flash
operator that returns the log-sum-exp too; the function drops it. Here the backend runs as it is, and where it calls
that function the operator is called instead, with the arguments that the function would hand on: the output keeps its
bits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.kernels.torch_path import Rows, additive
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.kernels.visible_path import masked_scores

_FLASH = 1
"""What `torch._fused_sdp_choice` calls the flash operator."""
_LARGEST_SHARED_MASK = 2**20

Attended = tuple[Tensor, Tensor | None, Tensor | None]
"""Output, the weights if the backend gives them, and the log-sum-exp `(batch, heads, queries)` if it is known."""


def with_log_sum_exp(run: Callable[[], tuple[Tensor, Tensor | None]], call: AttentionCall) -> Attended:
    """Runs the user's backend, and keeps the log-sum-exp of its rows where the operator gives it.

    Args:
        run: runs the backend; gives output `(batch, queries, heads, width)` and weights or None.
        call: the attention call that it runs.

    Returns:
        Output and weights as the backend makes them, bit by bit, and the log-sum-exp `(batch, heads, queries)` in
        fp32 (fp64 for fp64), or None. It is 0 in rows without any key.

    Example:
        >>> from lvlm_attn.kernels.spec import Geometry
        >>> q = torch.zeros(1, 1, 2, 8)
        >>> call = AttentionCall(q, q, q, Geometry(0, 2, 2), scaling=1.0)
        >>> run = lambda: (scaled_dot_product_attention(q, q, q, is_causal=True), None)
        >>> with_log_sum_exp(run, call)[2]
        tensor([[[0.0000, 0.6931]]])
    """
    if not may_give(call):
        return *run(), None
    watch = _Watch(call.memo)
    with watch:
        output, weights = run()
    batch, heads, queries, _ = call.query.shape
    found = watch.found
    if found is None or found.numel() != batch * heads * queries:
        return output, weights, None
    # Heads that share keys may have stood in the place of queries.
    return output, weights, found if found.shape[2] == queries else found.reshape(batch, heads, queries)


def straight(call: AttentionCall, scale: float | None) -> tuple[Tensor, Tensor] | None:
    """What the function makes of the tensors of a call as they are, straight from the operator behind it.

    Args:
        call: the attention call, of one query.
        scale: as the function is given it.

    Returns:
        Output `(batch, 1, heads, width)`, contiguous, and log-sum-exp; None where the operator is not taken.
    """
    if torch.nn.functional.scaled_dot_product_attention is not scaled_dot_product_attention:
        return None  # somebody has put another one in its place
    query, key, value = call.query, call.key, call.value
    is_grouped = query.shape[1] != key.shape[1]
    if is_grouped and call.mask is not None:
        return None  # transformers then lets heads that share keys stand in the place of queries
    found = _flash(call.memo, query, key, value, call.mask, scale=scale, enable_gqa=is_grouped)
    return None if found is None else (found[0].transpose(1, 2).contiguous(), found[1])


def may_give(call: AttentionCall) -> bool:
    """Whether the log-sum-exp of a call may be got from the operator, and means what the call says."""
    device, asked = call.query.device, call.kwargs
    if _private() is None or not (reading_is_free(device) or device.type == "cuda"):
        return False
    return call.softcap is None and asked.get("position_bias") is None and asked.get("s_aux") is None


def row_log_sum_exp(call: AttentionCall, rows: Rows, visibilities: Sequence[Visibility] = ()) -> Tensor:
    """The log-sum-exp of some rows, computed: one pass over the keys, without the values, in chunks of rows.

    Args:
        call: the attention call.
        rows: which rows.
        visibilities: what queries may attend to beyond or below causality.

    Returns:
        `(batch, heads, rows)` in fp32 (fp64 for fp64); 0 in rows without any key.
    """
    parts = rows.fitting(call, call.key.shape[2])
    total = torch.cat([masked_scores(call, part, visibilities).logsumexp(-1) for part in parts], 2)
    return torch.where(total == -torch.inf, 0.0, total)


def flash(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attention of some rows to some keys with its log-sum-exp, on devices where `may_give` holds.

    Args:
        query: `(batch, heads, rows, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, width)`.
        mask: `(batch or 1, heads or 1, rows, keys)`, additive, or None.
        scaling: factor on the scores.

    Returns:
        Output `(batch, heads, rows, width)` and log-sum-exp `(batch, heads, rows)`; 0 in rows without any key.
    """
    private = _private()
    assert private is not None
    return private[1](query, key, value, 0.0, False, attn_mask=mask, scale=scaling)


class _Watch(TorchFunctionMode):
    """Exchanges one function for the operator behind it, which says more."""

    def __init__(self, memo: Memo):
        super().__init__()
        self.memo = memo
        self.found: Tensor | None = None
        self.seen = 0

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.seen += 1
        made = _flash(self.memo, *args, **kwargs)
        if made is None or self.seen > 1:
            self.found = None
            return func(*args, **kwargs)
        self.found = made[1]
        return made[0]


def _flash(
    memo: Memo,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor] | None:
    """Output and log-sum-exp `(batch, heads, queries)`; None where the function would not take the flash operator."""
    private = _private()
    if private is None or dropout_p or _needs_gradient(query, key, value):
        return None
    choose, operator = private
    is_like = _shape(query), _shape(key), _shape(value), _shape(attn_mask), is_causal, enable_gqa
    choice = memo.shared(
        (_flash, is_like),
        lambda: choose(query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa),
    )
    if choice != _FLASH:
        return None
    if query.is_cuda:
        if attn_mask is not None or enable_gqa or query.shape[-1] % 8:
            return None  # the function changes heads before it calls the operator
        flash = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention", None)
        if flash is None:
            return None
        output, total, *_ = flash.default(query, key, value, 0.0, is_causal, False, scale=scale)
        return output, total
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        # As the function makes it additive; once for all layers unless it is large.
        make = partial(additive, attn_mask, query.dtype)
        is_large = attn_mask.numel() > _LARGEST_SHARED_MASK
        attn_mask = make() if is_large else memo.shared((additive, attn_mask, query.dtype), make)
    return operator(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)


def _shape(tensor: Tensor | None) -> Hashable:
    """What the choice of an operator depends on; layers of one call choose once."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _private() -> tuple[Callable[..., int], Callable[..., tuple[Tensor, Tensor]]] | None:
    """What torch does not promise to keep: how it chooses an operator, and the operator; None where either is gone.

    When its test fails: see what `scaled_dot_product_attention` calls on the CPU in ATen's `attention.cpp`. Without it
    everything is computed as for backends that give no log-sum-exp.
    """
    choose = getattr(torch, "_fused_sdp_choice", None)
    operator = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return None if choose is None or operator is None else (choose, operator.default)
