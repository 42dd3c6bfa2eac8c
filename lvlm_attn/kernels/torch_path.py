"""The path for every device: the user's backend computes all rows, the touched rows are computed again.

The rows an intervention may change are few: the question after the image in prefill, one row in decode. Their
weights are `(batch, heads, rows, keys)`; no (queries, keys) matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.spec import Geometry, Redistribution, class_indicator, redistribution_gains


@dataclass(frozen=True)
class Rows:
    """Which queries of a call are touched, packed so that every sample has as many.

    Attributes:
        index: `(batch, rows)` indices into the queries of the call. Samples with fewer touched rows than
            others repeat untouched ones.
        is_touched: `(batch, rows)`, False at padding rows.
        is_all: whether the rows are the queries of the call as they stand.
    """

    index: Tensor
    is_touched: Tensor
    is_all: bool

    @staticmethod
    def of(is_touched: Tensor) -> Rows | None:
        """Packs `(batch, queries)` True at touched queries; None if there are none.

        A single query is taken as it is, which asks nothing of the device.
        """
        count = 1 if is_touched.shape[1] == 1 else int(is_touched.sum(1).max())
        if count == 0:
            return None
        if count == is_touched.shape[1]:
            index = torch.arange(count, device=is_touched.device).expand(is_touched.shape[0], -1)
            return Rows(index, is_touched, True)
        # A stable sort brings the touched rows to the front and keeps their order.
        index = is_touched.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
        return Rows(index, is_touched.gather(1, index), False)

    def part(self, span: slice) -> Rows:
        """Some of the rows."""
        index = self.index[:, span]
        return self if index.shape == self.index.shape else Rows(index, self.is_touched[:, span], False)

    def parts(self, count: int) -> Iterator[Rows]:
        """All of the rows, at most `count` at a time."""
        for start in range(0, self.index.shape[1], count):
            yield self.part(slice(start, start + count))

    def take(self, query: Tensor) -> Tensor:
        """Picks the rows out of `(batch, heads, queries, head_dim)`."""
        if self.is_all:
            return query
        index = self.index[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[3])
        return query.gather(2, index)


def row_scores(query: Tensor, key: Tensor, *, scaling: float, softcap: float | None = None) -> Tensor:
    """Computes the scores of some rows in fp32 (fp64 inputs stay fp64), before any mask.

    Args:
        query: `(batch, heads, rows, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        scaling: factor on the scores.
        softcap: bound of the scores by tanh, for models that have one.

    Returns:
        `(batch, heads, rows, keys)`.
    """
    batch, heads, rows, dim = query.shape
    kv_heads, keys = key.shape[1], key.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    # Heads that share a key head stand together, so that keys are read once and never repeated.
    grouped = (query.to(dtype) * scaling).reshape(batch, kv_heads, heads // kv_heads * rows, dim)
    if grouped.shape[2] == 1:  # the same numbers; on a CPU a matrix by a vector takes a third less time
        scores = (key.to(dtype) @ grouped.transpose(-1, -2)).view(batch, heads, rows, keys)
    else:
        scores = (grouped @ key.to(dtype).transpose(-1, -2)).view(batch, heads, rows, keys)
    return scores if softcap is None else (scores / softcap).tanh() * softcap


def row_weights(
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None = None,
    edit: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Computes softmax weights for some rows in fp32 (fp64 inputs stay fp64).

    Args:
        query: `(batch, heads, rows, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        scaling: factor on the scores.
        mask: `(batch, 1 or heads, rows, keys)`, boolean (True: may attend) or additive, or None.
        softcap: bound of the scores by tanh, for models that have one.
        edit: changes the scores before the softmax; sees minus infinity at masked keys.

    Returns:
        `(batch, heads, rows, keys)`, 0 in rows without any key.
    """
    scores = row_scores(query, key, scaling=scaling, softcap=softcap)
    blocked: Tensor | None = None
    if mask is not None and mask.dtype == torch.bool:
        blocked = ~mask
    elif mask is not None:
        scores = scores + mask
        if edit is not None:
            # Additive masks block with the lowest finite number, which an edit would scale.
            blocked = mask <= torch.finfo(mask.dtype).min / 2
    if blocked is not None:
        scores = scores.masked_fill(blocked, -torch.inf)
    if edit is not None:
        scores = edit(scores)
    weights = scores.softmax(-1)
    # A row whose keys are all blocked is NaN up to here.
    return weights if blocked is None else weights.masked_fill(blocked, 0.0)


def row_outputs(weights: Tensor, value: Tensor) -> Tensor:
    """Multiplies `(batch, heads, rows, keys)` weights by `(batch, kv_heads, keys, head_dim)` values."""
    batch, heads, rows, keys = weights.shape
    kv_heads = value.shape[1]
    grouped = weights.reshape(batch, kv_heads, heads // kv_heads * rows, keys)
    return (grouped @ value.to(weights.dtype)).view(batch, heads, rows, value.shape[3])


def attend_masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, call: AttentionCall) -> Tensor:
    """Attention of some rows of a call to keys that need not be its own.

    Args:
        query: `(batch, heads, rows, head_dim)`, of the call's queries.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, width)`.
        mask: `(batch, 1 or heads, rows, keys)`, boolean (True: may attend) or additive.
        call: the call, for how scores are scaled and bounded.

    Returns:
        `(batch, heads, rows, width)`.
    """
    if call.softcap is not None:
        weights = row_weights(query, key, scaling=call.scaling, mask=mask, softcap=call.softcap)
        return row_outputs(weights, value)
    if mask.dtype != torch.bool:
        mask = mask.to(query.dtype).clamp(min=torch.finfo(query.dtype).min)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=call.scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores: of a boolean one (True: may attend) 0 and minus infinity, else the mask itself."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def mask_rows(call: AttentionCall, rows: Rows, columns: Tensor | None = None) -> Tensor | None:
    """Picks the mask of some rows of a call.

    Args:
        call: the attention call.
        rows: which rows.
        columns: `(n,)` or `(batch, n)`, which key columns; None for all.

    Returns:
        `(batch, 1 or heads, rows, keys)`, boolean or additive, or None if no key is masked.
    """
    mask, geometry = call.mask, call.geometry
    if isinstance(mask, Tensor) and mask.dim() == 4:
        keys = mask.shape[-1]
        dense = mask.expand(rows.index.shape[0], *mask.shape[1:])
        if not rows.is_all:
            dense = dense.gather(2, rows.index[:, None, :, None].expand(-1, dense.shape[1], -1, keys))
        if keys < geometry.keys:
            blocked: float = False if dense.dtype == torch.bool else torch.finfo(dense.dtype).min
            dense = torch.nn.functional.pad(dense, (0, geometry.keys - keys), value=blocked)
        dense = dense[..., : geometry.keys]
        if columns is None:
            return dense
        if columns.dim() == 1:
            return dense.index_select(3, columns)
        return dense.gather(3, columns[:, None, None].expand(-1, *dense.shape[1:3], -1))
    allowed = geometry.may_attend(rows.index + geometry.start, columns)
    return None if allowed is None else allowed[:, None]


def redistribute(weights: Tensor, spec: Redistribution, geometry: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Applies a redistribution to the weights of some rows.

    Args:
        weights: `(batch, heads, rows, keys)`.
        spec: what to move.
        geometry: where the keys stand.

    Returns:
        The new weights, `(batch, heads, rows)` True where a row is changed, and the mass moved
        `(batch, heads, rows)`.
    """
    kept = {} if spec.kept is None else spec.kept
    indicator: Tensor | None = kept.get(class_indicator)
    if indicator is None or indicator.dtype != weights.dtype or indicator.device != weights.device:
        indicator = kept[class_indicator] = class_indicator(spec.key_class, weights.dtype)
    columns = slice(geometry.first_key, geometry.first_key + weights.shape[-1])
    indicator = indicator[:, None, :, columns]
    known = indicator.shape[-1]
    # Columns after the known ones were generated later: text, whose weight stays and whose mass is not needed.
    masses = weights[..., :known] @ indicator.transpose(-1, -2)
    gains, is_changed = redistribution_gains(masses, spec)
    moved = (masses * (gains - 1)).clamp(min=0).sum(-1)
    factors = gains @ indicator
    if known < weights.shape[-1]:
        factors = torch.nn.functional.pad(factors, (0, weights.shape[-1] - known), value=1.0)
    return weights * factors, is_changed, moved


def write_rows(output: Tensor, new: Tensor, rows: Rows, is_changed: Tensor) -> Tensor:
    """Puts changed rows into the output of the backend; all else stays bit-identical.

    Args:
        output: `(batch, queries, heads, width)`, written in place unless it carries gradients.
        new: `(batch, heads, rows, width)`.
        rows: which rows they are.
        is_changed: `(batch, heads, rows)`.

    Returns:
        The output with the changed rows.
    """
    new = new.transpose(1, 2).to(output.dtype)
    is_changed = (is_changed & rows.is_touched[:, None]).transpose(1, 2)[..., None]
    if rows.is_all:
        return torch.where(is_changed, new, output)
    index = rows.index[:, :, None, None].expand_as(new)
    merged = torch.where(is_changed, new, output.gather(1, index))
    if output.requires_grad or not output.is_contiguous():
        return output.scatter(1, index, merged)
    return output.scatter_(1, index, merged)
