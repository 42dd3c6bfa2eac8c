"""New outputs of rows from their old ones: what an edit of the weights changes, without a second attention.

With a row's log-sum-exp the weight of any key is had from that key alone. An edit that multiplies the weights of all
but a few keys by one number g makes of the output `g * out + sum over the few of (factor - g) * w * v`. Everything here
is `(groups, rows, ...)`: a group is a sample and a key head, its rows are the rows of all heads that share it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import KeyClass, Redistribution

LIMITS = {torch.float64: 31.0, torch.float32: 7.0}
"""Most that the factor of the keys that are not read may exceed 1, by the dtype of the output: its error grows by the
factor. Above the limit rows are to be computed from all keys, as are outputs in half precision: rounded twice, they are
up to one and a half times as far off as rounding alone makes them."""


class Judged(NamedTuple):
    """What was decided of some rows.

    Attributes:
        amounts: `(..., 2)`, by how much plain patches grow, and the share that sinks lose; 0 in rows that stay.
        stays: `(..., 1)`, True in those rows.
        moved: `(..., 1 or more)`, of which the first is the weight that a row moves if it is changed.
    """

    amounts: Tensor
    stays: Tensor
    moved: Tensor


@dataclass(frozen=True, eq=False)
class ByClass:
    """A redistribution as what the few keys add up to and what becomes of them, for rows whose masses sum to 1.

    The same rule as `lvlm_attn.kernels.spec.redistribution_gains`. With masses that sum to 1 all of it is linear but
    one division: features of a row are sums over its weights, amounts are made of them, and a class's factor is 1 and
    its effects times the amounts. Features and effects are relative to the class that is not read.

    Attributes:
        features: `(groups, n, 5)`.
        constant: `(5,)`, the features of a row all of whose weight is on other keys.
        effects: `(groups, 2, n)`.
        grows: whether the keys that are not read are plain patches, which grow; else they are text, which stays.
        most: a bound of the amounts, known beforehand; infinity for none.
        has_least: whether rows that change have some weight on plain patches.
    """

    features: Tensor
    constant: Tensor
    effects: Tensor
    grows: bool
    most: float
    has_least: bool

    @staticmethod
    def of(spec: Redistribution, kinds: Tensor, base: KeyClass, dtype: torch.dtype, kv_heads: int) -> ByClass:
        """The tables of few keys.

        Args:
            spec: what to move.
            kinds: `(batch, n)`, the `KeyClass` of each of the few.
            base: the class of all others, `PATCH` or `TEXT`.
            dtype: of the scores.
            kv_heads: number of key heads.
        """
        floor, rho, taken = spec.mass_floor, spec.rho, spec.removed_fraction
        # Image weight above the floor, plain weight above its share, weight taken, `taken` times and once plain weight.
        features = torch.tensor(
            [
                [-floor, 0, 0, 0, 0],
                [-floor, 0, taken, 0, 0],
                [1 - floor, 1 - rho, 0, taken, 1],
                [1 - floor, -rho, taken, 0, 0],
            ],
            dtype=torch.float64,
            device=kinds.device,
        )
        effects = torch.tensor([[0, 0], [0, -1], [1, 0], [0, -1]], dtype=dtype, device=kinds.device)
        index, least = kinds.long(), rho * floor  # the least plain weight of a row that is changed
        return ByClass(
            per_group((features - features[base])[index].to(dtype), kv_heads),
            features[base].to(dtype),
            per_group((effects - effects[base])[index].transpose(1, 2), kv_heads),
            base == KeyClass.PATCH,
            max(taken * (1 - least) / least, taken) if least > 0 else math.inf,
            least > 0,
        )

    def judge(self, weights: Tensor, is_touched: Tensor | None) -> Judged:
        """Decides of rows by their weights on the few keys; see `redistributed`.

        Where plain patches are read, no weight on them means none. Else it is what is left of 1, and what is divided by
        it has to come out negative, infinite or NaN where it may be nothing, so that it is seen.
        """
        found = torch.baddbmm(self.constant, weights, self.features)
        image, share, taken, plain = torch.split(found, [1, 1, 2, 1], -1)
        stays = torch.minimum(image, share) < 0
        if not (self.grows or self.has_least):
            stays = stays | (plain <= 0)
        if is_touched is not None:
            stays = stays | ~is_touched
        return Judged((taken / plain).masked_fill_(stays, 0), stays, taken)


def per_group(values: Tensor, kv_heads: int) -> Tensor:
    """`(batch, ...)` values for every group, `(groups, ...)`."""
    return values[:, None].expand(-1, kv_heads, *values.shape[1:]).flatten(0, 1)


def few_of(tensor: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Picks columns `(n,)` or `(batch, n)` out of `(batch, kv_heads, keys, width)`, as `(groups, n, width)`."""
    if columns.dim() == 1:
        found = tensor.index_select(2, columns)
    else:
        found = tensor.gather(2, columns[:, None, :, None].expand(-1, tensor.shape[1], -1, tensor.shape[3]))
    found = found.flatten(0, 1)
    return found if found.dtype == dtype else found.to(dtype)


def few_weights(
    query: Tensor, key: Tensor, bias: Tensor | None, log_sum_exp: Tensor, scaling: float
) -> Tensor:
    """The softmax weights of the few keys.

    Args:
        query: `(groups, rows, head_dim)`.
        key: `(groups, n, head_dim)`.
        bias: `(1 or groups, 1 or rows, n)`, added to the scores: the model's mask, and minus infinity at keys that are
            none of the few of a sample, or that a row may not attend to; None for 0.
        log_sum_exp: `(groups, rows, 1)`, of the scores of all keys.
        scaling: factor on the scores.

    Returns:
        `(groups, rows, n)`, a tensor of its own.
    """
    if bias is None:
        scores = torch.baddbmm(log_sum_exp, query, key.transpose(1, 2), beta=-1, alpha=scaling)
    else:
        scores = torch.baddbmm(bias - log_sum_exp, query, key.transpose(1, 2), alpha=scaling)
    return scores.exp_()


def redistributed(
    output: Tensor, weights: Tensor, value: Tensor, by: ByClass, limit: float, is_touched: Tensor | None
) -> Judged | None:
    """Multiplies the weights of every class by its factor, in the outputs of rows.

    Args:
        output: `(groups, rows, width)`, changed in place; rows that stay keep their bits.
        weights: `(groups, rows, n)` of the few keys, overwritten.
        value: `(groups, n, width)`.
        by: what classes do.
        limit: most that the factor of the other keys may exceed 1.
        is_touched: `(groups or 1, rows, 1)`, which rows may change; None for all.

    Returns:
        What was decided; None, with nothing changed, if a factor is above the limit.
    """
    judged = by.judge(weights, is_touched)
    amounts = judged.amounts
    if by.grows:
        if by.most > limit:
            least, most = amounts.aminmax()
            if not (float(least) >= 0 and float(most) <= limit):
                return None
        output.addcmul_(amounts[..., :1], output)
    output.baddbmm_(torch.bmm(amounts, by.effects).mul_(weights), value)
    return judged


def amplified_few(
    output: Tensor, weights: Tensor, value: Tensor, log_factor: Tensor, limit: float
) -> tuple[Tensor, Tensor] | None:
    """Multiplies the weights of the few keys by factors of their own; rows then sum to 1 again.

    Args:
        output: `(groups, rows, width)`.
        weights: `(groups, rows, n)`.
        value: `(groups, n, width)`.
        log_factor: `(1 or groups, 1 or rows, n)`, the logarithms of the factors.
        limit: most that the factor of the other keys may exceed 1 once rows sum to 1.

    Returns:
        The new output and the new weights; None if a factor is above the limit.
    """
    added = torch.expm1(log_factor) * weights
    total = 1 + added.sum(-1, keepdim=True)
    if not float(total.amin()) * (1 + limit) >= 1:
        return None
    return torch.baddbmm(output, added, value) / total, (weights + added) / total


def merge(
    output: Tensor, total: Tensor, ahead: Tensor, total_ahead: Tensor, is_open: Tensor | None = None
) -> Tensor:
    """Joins attention to some keys with attention to others, as if one softmax had been over all.

    Args:
        output: `(..., width)`, attention to the first keys, changed in place.
        total: `(...)`, the log-sum-exp of its scores.
        ahead: `(..., width)`, attention to the others; finite everywhere.
        total_ahead: `(...)`, the log-sum-exp of those.
        is_open: `(...)`, False in rows that attend to none of the others, which keep their bits; None for all.

    Returns:
        The joined log-sum-exp.

    Example:
        >>> output, zero = torch.ones(1, 1), torch.zeros(1)
        >>> merge(output, zero, torch.tensor([[3.0]]), zero), output
        (tensor([0.6931]), tensor([[2.]]))
    """
    share, joined = torch.sigmoid(total_ahead - total), torch.logaddexp(total, total_ahead)
    if is_open is not None:
        share, joined = share.masked_fill_(~is_open, 0), torch.where(is_open, joined, total)
    share = share[..., None]
    if output.dtype == share.dtype:
        output.lerp_(ahead, share)
    else:
        output.copy_(torch.lerp(output.to(share.dtype), ahead.to(share.dtype), share))
    return joined
