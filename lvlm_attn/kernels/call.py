"""One attention call as the model makes it, which every path takes, and what the layers of a forward call share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import Geometry

Made = TypeVar("Made")
_MISSING = object()


@dataclass(eq=False)
class Memo:
    """What the layers of a forward call share: each value is made for the first layer that asks.

    A key names what its value is made from. Tensors and specs stand in it themselves, so that they live as long as
    the value and no other object can take their place; they are compared by identity.

    Attributes:
        most: the most values kept, of which the oldest goes first; None for all.
        kept: the values by key.

    Example:
        >>> memo, mask = Memo(), torch.ones(1, 3, dtype=torch.bool)
        >>> memo.shared(("counts", mask), lambda: mask.sum(1))
        tensor([3])
        >>> memo.shared(("counts", mask), lambda: None)
        tensor([3])
    """

    most: int | None = None
    kept: dict[Hashable, Any] = field(default_factory=dict)

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The value kept under `key`, made now if there is none."""
        found = self.kept.get(key, _MISSING)
        if found is _MISSING:
            if self.most is not None and len(self.kept) >= self.most:
                del self.kept[next(iter(self.kept))]
            found = self.kept[key] = make()
        return cast("Made", found)

    def clear(self) -> None:
        """Forgets all values."""
        self.kept.clear()


class Inputs(NamedTuple):
    """The tensors of an attention call and the factor on its scores; see `AttentionCall`."""

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One attention call as the model makes it; what is to change about it stands beside it.

    Attributes:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`; heads share keys in groups of heads / kv_heads.
        value: `(batch, kv_heads, keys, head_dim)`.
        geometry: where the queries and keys stand.
        scaling: factor on the scores.
        mask: what the backend's mask function made. A dense one `(batch or 1, heads or 1, queries, keys)`, boolean
            (True: may attend) or additive, is the truth; anything else (None, flash's padding, flex's block mask)
            says no more than the geometry.
        softcap: bound of the scores by tanh, for models that have one.
        kwargs: all that the model passed to the backend beside the tensors.
        memo: what the layers of the forward call share.

    Example:
        >>> q = torch.randn(1, 2, 3, 8)
        >>> AttentionCall(q, q, q, Geometry(0, 3, 3), scaling=8**-0.5).score_dtype
        torch.float32
    """

    query: Tensor
    key: Tensor
    value: Tensor
    geometry: Geometry
    scaling: float
    mask: Any = None
    softcap: float | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    memo: Memo = field(default_factory=Memo)

    @property
    def score_dtype(self) -> torch.dtype:
        """Of scores and weights: fp32, or fp64 where the queries are."""
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32
