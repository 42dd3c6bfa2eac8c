"""What the attention of a benchmark is compared with in the same run; none of it uses this package's kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attention_case import Case
from lvlm_attn.kernels.spec import KeyClass

Run = Callable[[int], Any]

BACKENDS: Mapping[str, Any] = {
    "sdpa, flash": SDPBackend.FLASH_ATTENTION,
    "sdpa, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "sdpa, efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def plain(case: Case) -> dict[str, Run]:
    """Torch's fused attention as it chooses by itself, and each of its backends that takes this call."""
    found: dict[str, Run] = {"sdpa": case.plain}
    for name, backend in BACKENDS.items():

        def pinned(index: int, backend: Any = backend) -> Tensor:
            with sdpa_kernel(backend):
                return case.plain(index)

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pinned(0)
        except RuntimeError:
            continue  # this backend does not take the call; torch has said why in warnings
        found[name] = pinned
    return found


def eager_var(case: Case) -> Run:
    """VAR as its paper and the released implementations have it, written anew: on the whole matrix of weights.

    Softmax in fp32, weights in the type of the model; of every touched row `p` of the weight on sinks is taken and
    given to the other patches, in proportion to what they have.
    """
    moved = case.asked.moved
    assert moved is not None
    classes = moved.key_class.to(torch.int64)
    is_sink = (classes == int(KeyClass.TEXT_SINK)) | (classes == int(KeyClass.PATCH_SINK))
    is_plain = classes == int(KeyClass.PATCH)

    def run(index: int) -> Tensor:
        weights, value = eager_weights(case, index)
        rows = moved.is_touched[:, None, :, None]
        on_sinks = weights * is_sink[:, None, None]
        on_plain = weights * is_plain[:, None, None]
        budget = moved.removed_fraction * on_sinks.sum(-1, keepdim=True)
        given = on_plain / on_plain.sum(-1, keepdim=True) * budget
        weights = torch.where(rows, weights - moved.removed_fraction * on_sinks + given, weights)
        return (weights @ value).transpose(1, 2).contiguous()

    return run


def eager_weights(case: Case, index: int) -> tuple[Tensor, Tensor]:
    """The whole matrix of weights, and values for every head."""
    query, key, value = case.sets[index]
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if case.mask is not None:
        scores = scores.masked_fill(~case.mask, -torch.inf)
    elif case.shape.queries > 1:
        blocked = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill_(blocked, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype), value


def flex_var(case: Case) -> Run:
    """VAR in two passes of FlexAttention over the touched rows, after the fused attention of all rows.

    The first pass attends to columns that say which class a key is, and so gives the weight on each class; the second
    adds the logarithm of each class's factor to the scores.
    """
    moved, shape = case.asked.moved, case.shape
    assert moved is not None
    rows = min(int(moved.is_touched.sum(1).max()), shape.queries)
    first = case.geometry.length - rows
    classes = moved.key_class.to(torch.int64)
    columns = (
        torch.nn.functional.one_hot(classes, 16).to(shape.dtype)[:, None].expand(-1, shape.kv_heads, -1, -1)
    )
    columns = columns.contiguous()
    blocks, attend = _flex(case, rows, lambda b, h, q, k: _allowed(case, b, q + first, k))

    def run(index: int) -> Tensor:
        query, key, value = case.sets[index]
        last = query[:, :, -rows:].contiguous()
        grouped = query.shape[1] != key.shape[1]
        masses = attend(last, key, columns, block_mask=blocks, enable_gqa=grouped).float()
        sink = masses[..., int(KeyClass.TEXT_SINK)] + masses[..., int(KeyClass.PATCH_SINK)]
        on_plain = masses[..., int(KeyClass.PATCH)]
        grow = 1 + moved.removed_fraction * sink / on_plain.clamp(min=1e-9)
        keep = torch.full_like(grow, 1 - moved.removed_fraction)
        factors = torch.stack((torch.ones_like(grow), keep, grow, keep), -1).log()

        def moved_scores(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
            return score + factors[b, h, q, classes[b, k]]

        new = attend(last, key, value, score_mod=moved_scores, block_mask=blocks, enable_gqa=grouped)
        output = case.plain(index)
        output[:, -rows:] = new.transpose(1, 2)
        return output

    return run


def flex_visible(case: Case, *, ahead: bool) -> Run:
    """A visibility in FlexAttention; its block mask is made once.

    Args:
        case: the case.
        ahead: whether image tokens attend to the question (MMA), or else to no other image token (VisualSelf).
    """
    kinds, grouped = case.kinds, case.shape.heads != case.shape.kv_heads

    def may_read(b: Any, h: Any, q: Any, k: Any) -> Any:
        of_image = kinds[b, q] == 2
        causal = _allowed(case, b, q, k)
        if ahead:
            return causal | (of_image & (kinds[b, k] == 3))
        return causal & (~(of_image & (kinds[b, k] == 2)) | (q == k))

    blocks, attend = _flex(case, case.shape.queries, may_read)

    def run(index: int) -> Tensor:
        output: Tensor = attend(*case.sets[index], block_mask=blocks, enable_gqa=grouped)
        return output.transpose(1, 2).contiguous()

    return run


def with_mask(case: Case, *, ahead: bool) -> Run:
    """Torch's fused attention with the same visibility as a dense boolean mask; see `flex_visible`."""
    kinds = case.kinds
    places = torch.arange(case.shape.keys, device=kinds.device)
    causal = (places <= places[:, None]) & (kinds > 0)[:, None]
    of_image = (kinds == 2)[:, :, None]
    if ahead:
        mask = causal | (of_image & (kinds == 3)[:, None])
    else:
        mask = causal & (~(of_image & (kinds == 2)[:, None]) | (places == places[:, None]))
    mask = (mask | (places == places[:, None]))[:, None]

    def run(index: int) -> Tensor:
        output = torch.nn.functional.scaled_dot_product_attention(
            *case.sets[index], attn_mask=mask, enable_gqa=case.shape.heads != case.shape.kv_heads
        )
        return output.transpose(1, 2).contiguous()

    return run


def _allowed(case: Case, b: Any, q: Any, k: Any) -> Any:
    """Causality and padding for positions."""
    return (q >= k) & ((case.kinds[b, k] > 0) | (q == k))


def _flex(case: Case, queries: int, may_read: Callable[..., Any]) -> tuple[Any, Any]:
    """A block mask, and FlexAttention, compiled on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    shape, device = case.shape, case.machine.device
    blocks = create_block_mask(may_read, shape.batch, None, queries, shape.keys, device=str(device))
    attend: Any = torch.compile(flex_attention, dynamic=False) if case.machine.is_gpu else flex_attention
    return blocks, attend
