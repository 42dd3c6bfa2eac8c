"""New outputs of rows from their old ones: what an edit of the weights changes, without a second attention.

With a row's log-sum-exp the weight of any key is had from that key alone. An edit that multiplies the weights of all
but a few keys by one number g makes of the output `g * out + sum over the few of (factor - g) * w * v`. Everything here
is `(groups, rows, ...)`: a group is a sample and a key head, its rows are the rows of all heads that share it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
        changes: for each row of each head whether it is changed, sample by sample and head by head.
        moved: the weight moved in all of them.
    """

    changes: list[bool]
    moved: float


class ByClass(NamedTuple):
    """A redistribution as what the few keys add up to and what becomes of them, for rows whose masses sum to 1.

    The same rule as `lvlm_attn.kernels.spec.redistribution_gains`. With masses that sum to 1 all of it is linear but
    one division: features of a row are sums over its weights, amounts are made of them, and a class's factor is 1 and
    its effects times the amounts. Features and effects are relative to the class that is not read, so that a key of
    that class among the few adds nothing.

    Attributes:
        features: `(batch, n, 4)`: image weight above the floor, plain weight above its share, weight taken, plain
            weight.
        constant: `(4,)`, the features of a row all of whose weight is on other keys.
        effects: `(batch, 3, n)`, of the growth of plain patches, of the share that sinks lose, and of nothing.
        taken: that share.
        grows: whether the keys that are not read are plain patches, which grow; else they are text, which stays.
    """

    features: Tensor
    constant: Tensor
    effects: Tensor
    taken: float
    grows: bool

    @staticmethod
    def of(spec: Redistribution, kinds: Tensor, base: KeyClass, dtype: torch.dtype) -> ByClass:
        """The tables of few keys.

        Args:
            spec: what to move.
            kinds: `(batch, n)`, the `KeyClass` of each of the few.
            base: the class of all others, `PATCH` or `TEXT`.
            dtype: of the scores.
        """
        floor, rho, taken = spec.mass_floor, spec.rho, spec.removed_fraction
        features = torch.tensor(
            [
                [-floor, 0, 0, 0],
                [-floor, 0, taken, 0],
                [1 - floor, 1 - rho, 0, 1],
                [1 - floor, -rho, taken, 0],
            ],
            dtype=torch.float64,
            device=kinds.device,
        )
        effects = torch.tensor(
            [[0, 0, 0], [0, -1, 0], [1, 0, 0], [0, -1, 0]], dtype=dtype, device=kinds.device
        )
        index = kinds.long()
        return ByClass(
            (features - features[base])[index].to(dtype),
            features[base].to(dtype),
            (effects - effects[base])[index].transpose(1, 2).contiguous(),
            float(taken),
            base == KeyClass.PATCH,
        )

    def first(self, count: int) -> ByClass:
        """The tables of the first of the few keys."""
        return self._replace(features=self.features[:, :count], effects=self.effects[..., :count])

    def judge(
        self, weights: Tensor, limit: float, is_touched: Sequence[bool] | None
    ) -> tuple[Judged, list[float]] | None:
        """Decides of rows by their weights on the few keys, on the host; see `redistributed`.

        Where plain patches are read, no weight on them means none. Else it is what is left of 1, and what is divided by
        it has to come out negative, infinite or NaN where it may be nothing, so that it is seen.

        Returns:
            What was decided, and for each row one after another its two amounts, 0 where it stays, and the factor of
            plain patches.
        """
        batch, (groups, count, few) = len(self.features), weights.shape
        rows = weights.view(batch, groups * count // batch, few)
        found = torch.baddbmm(self.constant, rows, self.features)
        amounts: list[float] = []
        changes, moved = [], 0.0
        for place, (image, share, lost, plain) in enumerate(found.flatten(0, 1).tolist()):
            stays = image < 0 or share < 0 or not (self.grows or plain > 0)
            if stays or (is_touched is not None and not is_touched[place]):
                amounts += 0.0, 0.0, 1.0
                changes.append(False)
                continue
            growth = lost / plain if plain else math.inf
            if self.grows and not 0 <= growth <= limit:
                return None
            amounts += growth, self.taken, 1 + growth
            changes.append(True)
            moved += lost
        return Judged(changes, moved), amounts


def few_of(tensor: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
    """Picks columns `(n,)` or `(batch, n)` out of `(batch, kv_heads, keys, width)`, as `(groups, n, width)`."""
    batch, kv_heads, _, width = tensor.shape
    if columns.dim() > 1:
        index = columns[:, None, :, None].expand(-1, kv_heads, -1, width)
        found = tensor.gather(2, index).flatten(0, 1)
    elif batch == 1:  # of three dimensions in half the time of four
        found = tensor[0].index_select(1, columns)
    else:
        found = tensor.index_select(2, columns).flatten(0, 1)
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
    output: Tensor,
    weights: Tensor,
    value: Tensor,
    by: ByClass,
    limit: float,
    is_touched: Sequence[bool] | None,
) -> Judged | None:
    """Multiplies the weights of every class by its factor, in the outputs of rows.

    Args:
        output: `(groups, rows, width)`, changed in place; rows that stay keep their bits.
        weights: `(groups, rows, n)` of the few keys, contiguous, overwritten.
        value: `(groups, n, width)`.
        by: what classes do.
        limit: most that the factor of the other keys may exceed 1.
        is_touched: for each row of each head whether it may change, as in `Judged`; None for all.

    Returns:
        What was decided; None, with nothing changed, if a factor is above the limit.
    """
    found = by.judge(weights, limit, is_touched)
    if found is None:
        return None
    judged, given = found
    if any(judged.changes):
        amounts = torch.tensor(given, dtype=weights.dtype).view(len(by.effects), -1, 3)
        weights.mul_(torch.bmm(amounts, by.effects).view_as(weights))
        if by.grows:
            output.mul_(amounts.view(*output.shape[:2], 3)[..., 2:])
        output.baddbmm_(weights, value)
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
