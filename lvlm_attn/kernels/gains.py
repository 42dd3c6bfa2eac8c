"""Factors on the weights of key classes, as a function of how much weight each class has.

A row's weights that are multiplied by one factor per class need no softmax again: the new output is made of the old one
and of the keys of all classes but one. What decides the factors is data here: numbers that are linear in the masses,
a judgement of them, and effects that are linear in what is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import KeyClass, Redistribution

Table: TypeAlias = tuple[tuple[float, ...], ...]
"""A line of numbers for each `KeyClass`."""


class Judged(NamedTuple):
    """What was decided of some rows.

    Attributes:
        amounts: `(..., effects)`, 0 in rows that stay.
        stays: `(..., 1)`, True in those rows.
        moved: `(..., 1 or more)`, of which the first is the weight that a row moves if it is changed.
    """

    amounts: Tensor
    stays: Tensor
    moved: Tensor


@dataclass(frozen=True)
class Gains:
    """How masses of classes become factors of classes.

    The masses of a row sum to 1, so that constants are features too. The factor of class c is
    `1 + sum over k of amounts[k] * effects[c][k]`.

    Attributes:
        features: for each class what a unit of weight on it adds to each feature.
        judge: makes amounts of features `(..., features)`. Its second argument says whether masses are sums of weights,
            so that 0 means none; else they are what is left of 1, and an amount that divides by what may be nothing has
            to come out negative, infinite or NaN, so that it is seen.
        effects: for each class what a unit of each amount adds to its factor.
        most: a bound of the amounts, known beforehand; infinity for none.
    """

    features: Table
    judge: Callable[[Tensor, bool], Judged]
    effects: Table
    most: float = math.inf

    def factors(self, masses: Tensor) -> tuple[Tensor, Tensor]:
        """The factors `(..., 4)` for masses `(..., 4)`, and `(...)`, True where a row is changed.

        Example:
            >>> none = torch.zeros(1, dtype=torch.bool)
            >>> gains = of_redistribution(Redistribution(none, none, 0.5, 0.1, 0.1))
            >>> gains.factors(torch.tensor([0.25, 0.25, 0.5, 0.0]))[0]
            tensor([1.0000, 0.5000, 1.2500, 0.5000])
        """
        judged = self.judge(masses @ masses.new_tensor(self.features), True)
        added = judged.amounts @ masses.new_tensor(self.effects).transpose(0, 1)
        return 1 + added, ~judged.stays[..., 0]


def of_redistribution(spec: Redistribution) -> Gains:
    """The factors of a redistribution: sinks keep a share, and plain patches grow by what was taken.

    The same rule as `lvlm_attn.kernels.spec.redistribution_gains`, for rows whose masses sum to 1.
    """
    floor, rho, taken = spec.mass_floor, spec.rho, spec.removed_fraction
    # Image weight above the floor, plain weight above its share, weight taken, `taken` times and once plain weight.
    text, patch = (-floor, 0.0), (1 - floor, 1 - rho)
    features = {
        KeyClass.TEXT: (*text, 0.0, 0.0, 0.0),
        KeyClass.TEXT_SINK: (*text, taken, 0.0, 0.0),
        KeyClass.PATCH: (*patch, 0.0, taken, 1.0),
        KeyClass.PATCH_SINK: (1 - floor, -rho, taken, 0.0, 0.0),
    }
    sink = (0.0, -1.0)
    effects = {
        KeyClass.TEXT: (0.0, 0.0),
        KeyClass.TEXT_SINK: sink,
        KeyClass.PATCH: (1.0, 0.0),
        KeyClass.PATCH_SINK: sink,
    }
    least = rho * floor  # of plain weight in a row that is changed
    most = taken * (1 - least) / least if least > 0 else math.inf
    return Gains(
        tuple(features[kind] for kind in KeyClass),
        partial(_judge, least > 0),
        tuple(effects[kind] for kind in KeyClass),
        most=max(most, taken),
    )


def _judge(has_least: bool, features: Tensor, is_sum: bool) -> Judged:
    """Amounts: by how much plain patches grow, and the share that sinks lose."""
    image, share, taken, plain = torch.split(features, [1, 1, 2, 1], -1)
    stays = torch.minimum(image, share) < 0
    if is_sum and not has_least:
        stays = stays | (plain <= 0)
    return Judged((taken / plain).masked_fill_(stays, 0), stays, taken)
