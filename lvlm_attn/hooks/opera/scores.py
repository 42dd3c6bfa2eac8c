"""What the search of OPERA goes by: the attention rows it listens to, column scores, penalties, the common column."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EARLY = 10
"""Answers of up to so many tokens are judged by their attention on the image, and no column before is gone back to."""

SCALE = 1e-7
"""Factor on the column scores, as in the released code."""


@dataclass(frozen=True)
class Rule:
    """The parameters of a search; see `OPERA`."""

    candidates: int
    sigma: float
    alpha: float
    r: int | None
    beta: int


@dataclass
class Tape:
    """The attention rows of the last forward, `(rows, queries, keys)` in fp64."""

    rows: Tensor | None = None
    stats: dict[Any, Any] = field(default_factory=dict)


TAPE: ContextVar[Tape | None] = ContextVar("lvlm_attn_opera", default=None)
"""Where the running search listens."""


def grown(columns: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Column scores of an answer when a row is added.

    Args:
        columns: `(..., n)` logarithms of the scores so far.
        weights: `(..., n + 1)` weights of the new row on the answer's tokens, itself last.
        sigma: factor on the weights.

    Returns:
        `(..., n + 1)` logarithms: `1e-7` times the product of `sigma * weight` over the rows from the diagonal on.

    Example:
        >>> grown(torch.zeros(1, 0), torch.ones(1, 1), sigma=1e7).exp().round().tolist()
        [[1.0]]
    """
    scaled = (sigma * weights).log()
    own = scaled[..., -1:] + torch.tensor(SCALE, dtype=scaled.dtype).log().item()
    return torch.cat((columns + scaled[..., :-1], own), -1)


def penalties(columns: Tensor, image_mass: Tensor) -> Tensor:
    """What is taken from the logit of a token: its largest column score, or in short answers minus its image weight.

    Args:
        columns: `(..., n)` logarithms of column scores with the token in place.
        image_mass: `(...)`, weight of the token's row on the image.
    """
    if columns.shape[-1] <= EARLY:
        return -image_mass
    return columns.amax(-1).exp().clamp(max=torch.finfo(torch.float32).max)


def common_column(history: Tensor, r: int) -> int | None:
    """The column that is the largest at least `r` times in every beam, if any; the most frequent of several.

    Args:
        history: `(beams, steps)`, index of the largest column at each step.
        r: how often.

    Example:
        >>> common_column(torch.tensor([[3, 12, 12], [12, 12, 12]]), 2)
        12
    """
    if history.shape[1] == 0:
        return None
    size = int(history.max()) + 1
    counts = torch.stack([torch.bincount(row, minlength=size) for row in history]).amin(0)
    counts[:EARLY] = 0
    best = int(counts.argmax())
    return best if int(counts[best]) >= r else None
