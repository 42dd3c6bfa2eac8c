"""An attention mask over token groups: which keys a query may attend to beyond or below plain causality.

A table is small (groups x groups) and the groups are one number per position, so every path evaluates a pair of
positions from two integers and their distance; no (queries, keys) tensor is part of the description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.kernels.spec import Geometry, at_columns

ALL = 2**30
"""A reach without limit."""

Table: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Visibility:
    """Which keys of one group queries of another may attend to; every query may attend to itself.

    A table entry is a reach: how many positions away a key may lie, 0 for none, `ALL` for any. Positions past
    the end of `group` (tokens generated later) are of group 0.

    Attributes:
        group: `(batch, positions)`, the group of each position, counted from 0.
        earlier: `earlier[q][k]`, the reach of queries of group `q` back to keys of group `k`; in a model whose own
            mask opens keys ahead (images that attend to themselves both ways), the reach ahead to those as well.
        later: `later[q][k]`, their reach ahead; None where no query attends ahead.
        strength: factor in (0, 1] on the exponentiated score of every key attended to ahead.
        predicate: further condition on earlier keys, for patterns no table holds. Takes the indices of queries
            `(batch, rows, 1)` and of keys `(1, 1, keys)` in the sequence, gives True where a key is open.
        touches: `(batch, positions)`, where `predicate` may forbid a key that plain causality allows; required
            with it.

    Raises:
        LvlmAttnError: if a table is not square, the tables differ in size, a reach is no whole number from 0 on, the
            strength is outside (0, 1], or a predicate comes without `touches`.

    Example:
        >>> group = torch.tensor([[0, 1, 1, 0]])  # text, two patches, text
        >>> mask = Visibility(group, earlier=((ALL, ALL), (ALL, 0)))  # patches attend to no other patch
        >>> geometry = Geometry(0, 4, 4)
        >>> allowed_keys([mask], geometry, torch.arange(4)[None])[0].int().tolist()
        [[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]]]
    """

    group: Tensor
    earlier: Table
    later: Table | None = None
    strength: float = 1.0
    predicate: Callable[[Tensor, Tensor], Tensor] | None = None
    touches: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("earlier", "later"):
            table: Any = getattr(self, name)
            if (table is not None or name == "earlier") and not _is_table(table, self.earlier):
                raise LvlmAttnError(
                    f"Visibility: {name}={shown(table)} must have one line for each group, with one reach "
                    f"for each group in it: a whole number from 0 on, or ALL; both tables are of one size."
                )
        strength: Any = self.strength
        if not isinstance(strength, Real) or not 0 < float(strength) <= 1:
            raise LvlmAttnError(
                f"Visibility: strength={shown(strength)} must be a number above 0 and up to 1."
            )
        if self.predicate is not None and self.touches is None:
            raise LvlmAttnError(
                "Visibility: a predicate needs touches, the positions where it may forbid a key."
            )

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.earlier)

    def is_plain(self, group: int) -> bool:
        """Whether queries of a group attend to what plain causality lets them, by the tables alone."""
        ahead = self.later is not None and any(self.later[group])
        return not ahead and self.reads_all_earlier(group)

    def reads_all_earlier(self, group: int) -> bool:
        """Whether queries of a group attend to all earlier keys, by the table alone."""
        return all(reach >= ALL for reach in self.earlier[group])

    def is_self_only(self, group: int) -> bool:
        """Whether queries of a group attend to nothing but themselves."""
        return not any(self.earlier[group]) and not (self.later and any(self.later[group]))

    def touched(self, geometry: Geometry) -> Tensor | None:
        """`(batch, queries)`, True at queries that may attend to something else than plain causality lets them.

        None where that can be said of none without looking: single queries of generated tokens.
        """
        grown = geometry.start >= self.group.shape[1] and self.is_plain(0)
        if grown and self.touches is None:
            return None
        differs = tuple(not self.is_plain(index) for index in range(self.groups))
        found = _on_device(differs, self.group.device)[self.of_queries(self.group, geometry)]
        if self.touches is not None:
            found = found | self.of_queries(self.touches.to(found.device), geometry)
        return found

    def self_only(self, geometry: Geometry) -> Tensor | None:
        """`(batch, queries)`, True at queries that attend to nothing but themselves; None if no group is such."""
        alone = tuple(self.is_self_only(index) for index in range(self.groups))
        if not any(alone) or geometry.start >= self.group.shape[1]:
            return None
        return _on_device(alone, self.group.device)[self.of_queries(self.group, geometry)]

    @staticmethod
    def of_queries(per_position: Tensor, geometry: Geometry) -> Tensor:
        """Turns values per position into values per query; positions past the given ones count as 0."""
        values = per_position[:, geometry.start : geometry.length]
        missing = geometry.queries - values.shape[1]
        values = torch.nn.functional.pad(values, (0, missing)) if missing else values
        return values if values.dtype == torch.bool else values.long()


def _is_table(table: Any, other: Any) -> bool:
    """Whether a table is square, as large as another, and holds reaches."""
    if not isinstance(table, Sequence) or not table or len(table) != len(other):
        return False
    return all(
        isinstance(row, Sequence)
        and len(row) == len(table)
        and all(isinstance(reach, Integral) and int(reach) >= 0 for reach in row)
        for row in table
    )


def allowed_keys(
    visibilities: Sequence[Visibility],
    geometry: Geometry,
    query_index: Tensor,
    causal: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    columns: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Says which keys some queries may attend to under all of some visibilities.

    Keys that the model's own mask allows have to be within every visibility's `earlier` reach: those before the
    query, and in models whose mask lets images attend to themselves both ways, those after it. Other keys ahead
    have to be unlocked by at least one, and have to be valid and already written. A sliding window bounds earlier
    keys alone. Of several visibilities that unlock a key, the first gives its strength.

    Args:
        visibilities: what restricts and what unlocks.
        geometry: where the queries and keys stand.
        query_index: `(batch, rows)` indices of the queries in the sequence.
        causal: `(batch, rows, keys)`, what the rows may attend to without the visibilities; from `geometry` if None.
        dtype: of the bias.
        columns: `(n,)` or `(batch, n)`, the key columns that are asked about; None for all.

    Returns:
        `(batch, rows, keys)` booleans, and a bias of that shape to add to the scores, or None if there is none.
    """
    device = query_index.device
    if causal is None:
        causal = geometry.may_attend(query_index, columns)
    query, key = query_index[..., None], geometry.key_index(columns, device)
    distance = query - key
    written = key < geometry.length
    if geometry.is_valid is not None:
        written = written & at_columns(geometry.to_columns(geometry.is_valid.to(device)), columns)[:, None]
    allowed = torch.ones_like(distance, dtype=torch.bool) if causal is None else causal
    groups = [
        (
            _of_positions(item.group.to(device), query_index),
            at_columns(geometry.to_columns(item.group.to(device)), columns).long(),
        )
        for item in visibilities
    ]
    for item, (of_query, of_key) in zip(visibilities, groups):
        if not all(map(item.reads_all_earlier, range(item.groups))):
            within = _within(item.earlier, of_query, of_key, distance.abs())
            allowed = allowed & (within | (distance == 0))
        if item.predicate is not None:
            allowed = allowed & (item.predicate(query, key) | (distance == 0))
    ahead = torch.zeros_like(allowed)
    bias: Tensor | None = None
    for item, (of_query, of_key) in zip(visibilities, groups):
        if item.later is not None:
            unlocked = (distance < 0) & _within(item.later, of_query, of_key, -distance) & written & ~allowed
            if item.strength != 1:
                added = unlocked & ~ahead
                bias = torch.zeros(allowed.shape, device=device, dtype=dtype) if bias is None else bias
                bias = bias.masked_fill(added, math.log(item.strength))
            ahead = ahead | unlocked
    return allowed | ahead, bias


@lru_cache(maxsize=256)
def _on_device(values: Any, device: torch.device) -> Tensor:
    """A small table on a device, brought there once: a copy to a device waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def _of_positions(per_position: Tensor, index: Tensor) -> Tensor:
    """Values of the positions `index` `(batch, rows)`; 0 past the end."""
    inside = index < per_position.shape[1]
    return per_position.gather(1, index.clamp(max=per_position.shape[1] - 1)).long() * inside


def _within(table: Table, of_query: Tensor, of_key: Tensor, distance: Tensor) -> Tensor:
    """`(batch, rows, keys)`, True where a distance is within the reach of the two groups."""
    batch, keys = of_key.shape
    reach = _on_device(tuple(map(tuple, table)), of_query.device)
    is_plain = all(entry == 0 or entry >= ALL for row in table for entry in row)
    # One line of keys for each group of queries; rows of a group share it.
    lines = (reach > 0 if is_plain else reach)[:, of_key].transpose(0, 1).reshape(-1, keys)
    offset = torch.arange(batch, device=of_query.device)[:, None] * len(table)
    found = lines.index_select(0, (of_query + offset).flatten()).view(batch, -1, keys)
    return found if is_plain else distance <= found
