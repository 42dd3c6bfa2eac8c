"""What an attention call should do beyond plain attention, as data that every path can evaluate.

A call is described by where its queries and keys stand in the sequence (`Geometry`) and by how its softmax
weights are to be changed (`Redistribution`). No field is ever a (queries, keys) matrix.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, shown


class KeyClass(IntEnum):
    """What a key is to a redistribution: sinks lose weight, plain patches gain it."""

    TEXT = 0
    TEXT_SINK = 1
    PATCH = 2
    PATCH_SINK = 3


@dataclass(frozen=True)
class Geometry:
    """Where the queries and keys of one call stand in the sequence.

    Attributes:
        start: index in the sequence of the first query (the number of cached tokens).
        queries: number of queries.
        keys: number of key columns; a static cache has more than were written, a sliding one fewer.
        is_valid: `(batch, start + queries)`, False at padding, or None if nothing is padded.
        window: how many positions back a query may attend, itself included, or None.
    """

    start: int
    queries: int
    keys: int
    is_valid: Tensor | None = None
    window: int | None = None

    @property
    def length(self) -> int:
        """Length of the sequence after this call."""
        return self.start + self.queries

    @property
    def first_key(self) -> int:
        """Index in the sequence of the first key column: above 0 only if a sliding cache dropped keys."""
        return max(self.length - self.keys, 0)

    @property
    def written(self) -> int:
        """How many key columns hold a key."""
        return min(self.keys, self.length - self.first_key)

    def to_columns(self, per_position: Tensor) -> Tensor:
        """Turns values per position `(batch, positions)` into values per key column `(batch, keys)`.

        Positions past the given ones (generated later) and columns not yet written become 0 or False.
        """
        values = per_position[:, self.first_key : self.first_key + self.written]
        missing = self.keys - values.shape[1]
        return torch.nn.functional.pad(values, (0, missing)) if missing else values

    def may_attend(self, query_index: Tensor, columns: Tensor | None = None) -> Tensor | None:
        """Says which key columns the given queries may attend to under the causal rule.

        Args:
            query_index: `(batch, rows)` indices of the queries in the sequence.
            columns: `(n,)` or `(batch, n)`, the key columns that are asked about; None for all.

        Returns:
            `(batch, rows, keys)`, or None if every query may attend to every key.
        """
        if self.queries == 1 and self.keys == self.length and self.is_valid is None and self.window is None:
            return None
        key_index = self.key_index(columns, query_index.device)
        allowed = key_index <= query_index[..., None]
        if self.window is not None:
            allowed &= key_index > query_index[..., None] - self.window
        if self.is_valid is not None:
            allowed &= at_columns(self.to_columns(self.is_valid.to(query_index.device)), columns)[:, None]
        return allowed

    def key_index(self, columns: Tensor | None, device: torch.device) -> Tensor:
        """`(1 or batch, 1, n)`, the positions of key columns `(n,)` or `(batch, n)`, or of all."""
        if columns is None:
            columns = torch.arange(self.keys, device=device)
        return (columns.expand(1, -1) if columns.dim() == 1 else columns)[:, None] + self.first_key


def at_columns(values: Tensor, columns: Tensor | None) -> Tensor:
    """Picks columns `(n,)` or `(batch, n)` out of the last dimension of `(batch or 1, ..., keys)`; all for None."""
    if columns is None:
        return values
    if columns.dim() == 1:
        return values.index_select(-1, columns)
    shape = len(columns), *values.shape[1:-1], columns.shape[1]
    index = columns.view(len(columns), *[1] * (values.dim() - 2), -1)
    return values.expand(*shape[:-1], -1).gather(-1, index.expand(shape))


@dataclass(frozen=True, eq=False)
class Redistribution:
    """Moves attention weight from sink keys to plain patches, in the heads and rows that attend to the image.

    For every head and touched row, with A the softmax weights: the row is changed if the weight on patches is
    at least `mass_floor` and the share of it on patches that are no sinks is at least `rho`. Then every sink
    keeps (1 - removed_fraction) of its weight, and what was taken goes to the patches that are no sinks, in
    proportion to the weight they have. Rows keep their sum.

    Source: "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (arXiv 2503.03321),
    section 5.

    Attributes:
        key_class: `(batch, positions)`, the `KeyClass` of each position; later positions are text.
        is_touched: `(batch, queries)`, the rows that may be changed.
        removed_fraction: share of every sink's weight that is taken, in [0, 1].
        rho: least share of the image weight that lies on patches that are no sinks, in [0, 1].
        mass_floor: least weight on patches, in [0, 1].
        kept: what is made of `key_class`, if the caller keeps it from call to call: an empty dictionary at first.

    Raises:
        LvlmAttnError: if a setting is no number in its bounds.
    """

    key_class: Tensor
    is_touched: Tensor
    removed_fraction: float
    rho: float
    mass_floor: float
    kept: dict[Hashable, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("removed_fraction", "rho", "mass_floor"):
            value: Any = getattr(self, name)
            if not isinstance(value, Real) or not 0 <= float(value) <= 1:  # NaN is neither
                raise LvlmAttnError(f"Redistribution: {name}={shown(value)} must be a number from 0 to 1.")


def class_indicator(key_class: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `(batch, 4, keys)`: 1 where a key is of the class, else 0."""
    classes = torch.arange(len(KeyClass), device=key_class.device)
    return (key_class[:, None, :] == classes[:, None]).to(dtype)


def redistribution_gains(masses: Tensor, spec: Redistribution) -> tuple[Tensor, Tensor]:
    """Turns the weight on each key class into the factor for each key class.

    Args:
        masses: `(batch, heads, rows, 4)`, the softmax weight on each `KeyClass`.
        spec: what to move; its `key_class` and `is_touched` are not used.

    Returns:
        The factors `(batch, heads, rows, 4)`, 1 in rows that stay, and `(batch, heads, rows)`, True where a
        row is changed if it is touched. The factors times the masses sum to what the masses sum to.
    """
    sink = masses[..., KeyClass.TEXT_SINK] + masses[..., KeyClass.PATCH_SINK]
    plain = masses[..., KeyClass.PATCH]
    image = plain + masses[..., KeyClass.PATCH_SINK]
    # rho * image instead of plain / image: no division, and an empty image never passes a positive floor.
    is_changed = (image >= spec.mass_floor) & (plain >= spec.rho * image) & (plain > 0)
    taken = is_changed.to(masses.dtype) * spec.removed_fraction
    keep = 1 - taken
    grow = 1 + taken * sink / torch.where(is_changed, plain, 1)
    return torch.stack((torch.ones_like(keep), keep, grow, keep), dim=-1), is_changed


@dataclass(frozen=True, eq=False)
class Amplification:
    """Changes the scores of some keys before the softmax, in the touched rows: `s + h * (gain * |s| + bias)`.

    With `signed` the gain keeps the sign of the score, `s + h * (gain * s + bias)`: 0.15 multiplies it by 1.15.

    Source: Liu et al., "Paying More Attention to Image" (PAI, ECCV 2024), section 3.2, where `gain` is alpha on
    image tokens. Scores of masked keys stay as they are.

    Attributes:
        is_touched: `(batch, queries)`, the rows that are changed.
        gain: `(batch, positions)` in fp32, or None for 0; later positions have 0.
        bias: `(batch, positions)` in fp32, or None for 0; later positions have 0.
        heads: `(heads,)` or `(batch, heads)`, the factor h of each head, or None for 1; heads of 0 stay as they are.
        head_cap: scale gain and bias per head and row by the weight on keys of nonzero gain relative to its mean
            over heads, at most this much; None for all heads alike.
        signed: whether the gain is on the score itself instead of its size.

    Raises:
        LvlmAttnError: if `head_cap` is no number above 0.
    """

    is_touched: Tensor
    gain: Tensor | None = None
    bias: Tensor | None = None
    heads: Tensor | None = None
    head_cap: float | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        cap: Any = self.head_cap
        if cap is not None and not (isinstance(cap, Real) and float(cap) > 0):
            raise LvlmAttnError(f"Amplification: head_cap={shown(cap)} must be a number above 0, or None.")

    @staticmethod
    def multiplying(is_touched: Tensor, factor: Tensor, heads: Tensor | None = None) -> Amplification:
        """Constant gains: multiplies the weights of keys by a factor, after which rows sum to 1 again.

        Args:
            is_touched: `(batch, queries)`, the rows that are changed.
            factor: `(batch, positions)`, above 0; later positions keep theirs.
            heads: `(heads,)` or `(batch, heads)`, the power of the factor in each head: 1 for heads that are changed
                and 0 for others, or anything between.

        Raises:
            LvlmAttnError: if a factor is not above 0.

        Example:
            >>> rows, double = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[1.0, 2.0, 1.0]])
            >>> Amplification.multiplying(rows, double).bias
            tensor([[0.0000, 0.6931, 0.0000]])
        """
        if not bool((factor > 0).all()):
            raise LvlmAttnError(
                f"A factor of attention weights is {float(factor.min())}, and must be above 0; to take weight away "
                f"altogether, hide the keys with a Visibility."
            )
        return Amplification(is_touched, bias=factor.float().log(), heads=heads)

    def per_head(self, heads: int) -> Tensor:
        """`(batch, heads)`, the factor of each head.

        Raises:
            LvlmAttnError: if the factors are of another number of heads.
        """
        batch = self.is_touched.shape[0]
        given = self.heads
        if given is None:
            return torch.ones(batch, heads, device=self.is_touched.device)
        if tuple(given.shape) not in ((heads,), (batch, heads)):
            raise LvlmAttnError(
                f"Amplification.heads has shape {tuple(given.shape)}; give one factor for each of the {heads} heads, "
                f"({heads},) or ({batch}, {heads})."
            )
        return given.expand(batch, -1)

    def changes(self, index: Tensor, heads: int) -> Tensor:
        """`(batch, heads, rows)`, True where the scores of some queries `(batch, rows)` are changed."""
        is_row = self.is_touched.to(index.device).gather(1, index)[:, None].expand(-1, heads, -1)
        return (
            is_row if self.heads is None else is_row & (self.per_head(heads)[..., None] != 0).to(index.device)
        )


Reweighing: TypeAlias = Redistribution | Amplification
"""What a layer may do to softmax weights. Amplifications act on the scores, redistributions on the weights."""


def amplified(scores: Tensor, spec: Amplification, geometry: Geometry, is_row: Tensor) -> Tensor:
    """Applies an amplification to scores.

    Args:
        scores: `(batch, heads, rows, keys)`, minus infinity at masked keys.
        spec: what to change; its `is_touched` is not used.
        geometry: where the keys stand.
        is_row: `(batch, rows)`, the rows that are changed.

    Returns:
        The new scores.
    """
    change = torch.zeros_like(scores)
    allowed = scores > -torch.inf
    if spec.gain is not None:
        gain = geometry.to_columns(spec.gain.to(scores))[:, None, None]
        finite = torch.where(allowed, scores, 0)
        change = gain * (finite if spec.signed else finite.abs())
    if spec.bias is not None:
        change = change + geometry.to_columns(spec.bias.to(scores))[:, None, None]
    if spec.heads is not None:
        factor = spec.per_head(scores.shape[1]).to(scores)[..., None, None]
        # Not 0 * change, which is NaN where a bias is infinite.
        change = torch.where(factor == 0, 0, change * factor)
    if spec.head_cap is not None:
        change = change * head_factors(scores, spec, geometry)[..., None]
    return torch.where(is_row[:, None, :, None] & allowed, scores + change, scores)


def head_factors(scores: Tensor, spec: Amplification, geometry: Geometry) -> Tensor:
    """`(batch, heads, rows)`: weight on the amplified keys relative to its mean over heads, capped."""
    given = spec.gain if spec.gain is not None else spec.bias
    assert given is not None
    assert spec.head_cap is not None
    chosen = (geometry.to_columns(given.to(scores)) != 0)[:, None, None]
    mass = (scores.softmax(-1).nan_to_num(0.0) * chosen).sum(-1)
    mean = mass.mean(1, keepdim=True)
    return (mass / torch.where(mean > 0, mean, 1)).clamp(max=spec.head_cap)
