"""The path for every device: the user's backend computes all rows, the touched rows are computed again.

The rows an intervention may change are few: the question after the image in prefill, one row in decode. Their
weights are `(batch, heads, rows, keys)`; no (queries, keys) matrix is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.spec import Geometry, Redistribution, at_columns, class_indicator, redistribution_gains

CHUNK_BYTES = 64 * 2**20
"""Most bytes of weights held at a time, unless a single row of every head needs more."""


@dataclass(frozen=True)
class Rows:
    """Which queries of a call are touched, packed so that every sample has as many.

    Attributes:
        index: `(batch, rows)` indices into the queries of the call. Samples with fewer touched rows than
            others repeat untouched ones.
        is_touched: `(batch, rows)`, False at padding rows.
        is_all: whether the rows are the queries of the call as they stand.
        start: the first of them where the same queries stand together in every sample; None where that is not known.
    """

    index: Tensor
    is_touched: Tensor
    is_all: bool
    start: int | None = None

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

    def parts(self, count: int) -> Iterator[Rows]:
        """All of the rows, at most `count` at a time."""
        rows, first = self.index.shape[1], 0 if self.is_all else self.start
        for at in range(0, rows, count):
            span = slice(at, at + count)
            start = None if first is None else first + at
            yield self if count >= rows else Rows(self.index[:, span], self.is_touched[:, span], False, start)

    def fitting(self, call: AttentionCall, keys: int, most: int = CHUNK_BYTES) -> Iterator[Rows]:
        """All of the rows, as many at a time as make at most `most` bytes of weights over some keys."""
        size = call.query.shape[0] * call.query.shape[1] * keys * call.score_dtype.itemsize
        return self.parts(max(most // max(size, 1), 1))

    def together(self) -> Rows:
        """The same rows, with `start` where they stand together; reads values, which waits on a GPU."""
        first = self.index[:1, :1]
        straight = first + torch.arange(self.index.shape[1], device=first.device)
        return replace(self, start=int(first)) if bool((self.index == straight).all()) else self

    def take(self, values: Tensor, dim: int = 2) -> Tensor:
        """Picks the rows along a dimension of `(batch, ...)`; as a view where they stand together."""
        if self.is_all:
            return values
        if self.start is not None:
            return values.narrow(dim, self.start, self.index.shape[1])
        return values.gather(dim, self.index_along(values, dim))

    def index_along(self, values: Tensor, dim: int) -> Tensor:
        """The index as `gather` and `scatter` need it along a dimension of `(batch, ...)`."""
        batch, count = self.index.shape
        index = self.index.view(batch, *[1] * (dim - 1), count, *[1] * (values.dim() - dim - 1))
        return index.expand(*values.shape[:dim], count, *values.shape[dim + 1 :])


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
    if mask is not None and mask.dtype != torch.bool and edit is None:
        return (scores + mask).softmax(-1)
    scores, blocked = masked(scores, mask)
    if edit is not None:
        scores = edit(scores)
    weights = scores.softmax(-1)
    # A row whose keys are all blocked is NaN up to here.
    return weights if blocked is None else weights.masked_fill(blocked, 0.0)


def masked(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Scores with a mask, boolean or additive: minus infinity at keys that it blocks; and which keys these are."""
    if mask is None:
        return scores, None
    blocked = ~is_open(mask)
    return (scores if mask.dtype == torch.bool else scores + mask).masked_fill(blocked, -torch.inf), blocked


def is_open(mask: Tensor) -> Tensor:
    """Where a boolean or additive mask lets rows attend. Additive masks block with the lowest finite number."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


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
        dense = rows.take(mask.expand(rows.index.shape[0], *mask.shape[1:]))
        missing = geometry.keys - dense.shape[3]
        if missing > 0:
            blocked: float = False if dense.dtype == torch.bool else torch.finfo(dense.dtype).min
            dense = torch.nn.functional.pad(dense, (0, missing), value=blocked)
        return at_columns(dense[..., : geometry.keys], columns)
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
    index = rows.index_along(output, 1)
    merged = torch.where(is_changed, new, output.gather(1, index))
    if output.requires_grad or not output.is_contiguous():
        return output.scatter(1, index, merged)
    return output.scatter_(1, index, merged)
