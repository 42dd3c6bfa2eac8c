"""Specs packed into flat tensors for the Triton kernels; nothing here needs Triton.

A pair of positions is judged from two small integers, the groups of the query and of the key, and their distance.
Everything packed is O(positions); nothing is ever (queries, keys).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.visibility import ALL, Visibility

LOG2E = 1.4426950408889634
MAX_COMBINED = 4096
"""Most groups of several visibilities together, before those that are alike are joined."""
MAX_GROUPS = 30
"""Groups that fit the bits of an int32; more are refused."""


class Shape(NamedTuple):
    """What a kernel is compiled for of an attention mask over groups.

    Attributes:
        groups: how many groups there are.
        lines: how many reaches but 0 there are, `ALL` always among them; 0 without a visibility.
        later: whether any query attends ahead.
        strength: whether keys ahead weigh less.
    """

    groups: int = 1
    lines: int = 0
    later: bool = False
    strength: bool = False


NO_SHAPE = Shape()


@dataclass(frozen=True, eq=False)
class PackedVisibility:
    """The attention mask over groups, as the kernels take it.

    Attributes:
        query_group: `(batch, queries)` int32, or None if no visibility acts.
        key_group: `(batch, keys)` int32, -1 at columns nobody may attend to (padding, not yet written); None if
            every column up to the causal bound is open.
        tables: int32, one after the other: the reaches back of each pair of groups, the reaches ahead; then, for keys
            back and for keys ahead, one line for each reach but 0, `ALL` first: the reach, and for each group the bits
            of the groups it attends to that far (`ALL` left out of the other lines, which may be empty); then the bits
            of the fp32 number, in units of log 2, that is added to scores of keys ahead, and for each group the bits
            of the groups it is added for. None if no visibility acts.
        shape: how much of it there is.
    """

    query_group: Tensor | None = None
    key_group: Tensor | None = None
    tables: Tensor | None = None
    shape: Shape = NO_SHAPE


class Tables(NamedTuple):
    """Several visibilities as one: reaches per pair of combined groups, and how the groups were combined."""

    earlier: list[list[int]]
    later: list[list[int]]
    strength: list[list[float]]
    renumber: list[int]


def unsupported_visibility(visibilities: Sequence[Visibility]) -> str | None:
    """Says why the kernels cannot take these visibilities, or None if they can."""
    if any(item.predicate is not None for item in visibilities):
        return "a visibility has a predicate, which no table holds"
    if has_too_many_groups(visibilities):
        return "the visibilities have too many groups together"
    tables = combined_tables(visibilities)
    if tables is None:
        return "two visibilities open the same keys ahead with different strengths and reaches"
    if len(tables.earlier) > MAX_GROUPS:
        return f"the visibilities have {len(tables.earlier)} groups together, more than {MAX_GROUPS}"
    if len(_strengths(tables)) > 1:
        return "keys ahead are open with several strengths"
    return None


def has_too_many_groups(visibilities: Sequence[Visibility]) -> bool:
    """Whether visibilities have more groups together than `combined_tables` is worth."""
    return math.prod(item.groups for item in visibilities) > MAX_COMBINED


def combined_groups(
    visibilities: Sequence[Visibility], geometry: Geometry, renumber: Tensor
) -> tuple[Tensor, Tensor]:
    """The combined group of each query `(batch, queries)` and of each key column `(batch, keys)`.

    Args:
        visibilities: whose groups are combined, at least one.
        geometry: where the queries and keys stand.
        renumber: `Tables.renumber`, on the device and in the dtype that are wanted.
    """
    of_query = of_key = torch.zeros((), dtype=torch.long, device=renumber.device)
    for item in visibilities:
        group = item.group.to(renumber.device)
        of_query = of_query * item.groups + Visibility.of_queries(group, geometry)
        of_key = of_key * item.groups + geometry.to_columns(group).long()
    return renumber[of_query], renumber[of_key]


def combined_tables(visibilities: Sequence[Visibility]) -> Tables | None:
    """Several visibilities as tables over combined groups; None if strengths depend on the distance.

    Combined groups are numbered as digits, the first visibility the highest; groups that attend and are attended to
    alike are then joined. Earlier keys have to be within every reach, keys ahead within one; the first visibility that
    reaches a key ahead gives its strength.
    """
    sizes = [item.groups for item in visibilities]
    combos = [_digits(number, sizes) for number in range(math.prod(sizes))]
    earlier, later, strength = [], [], []
    for of_query in combos:
        rows: tuple[list[int], list[int], list[float]] = ([], [], [])
        for of_key in combos:
            rows[0].append(min(item.earlier[q][k] for item, q, k in zip(visibilities, of_query, of_key)))
            ahead = [
                (item.later[q][k], item.strength)
                for item, q, k in zip(visibilities, of_query, of_key)
                if item.later is not None and item.later[q][k] > 0
            ]
            reach = max((entry[0] for entry in ahead), default=0)
            if any(entry[1] != ahead[0][1] for entry in ahead) and ahead[0][0] < reach:
                return None
            rows[1].append(reach)
            rows[2].append(ahead[0][1] if ahead else 1.0)
        earlier.append(rows[0])
        later.append(rows[1])
        strength.append(rows[2])
    return _joined(Tables(earlier, later, strength, list(range(len(combos)))))


def _digits(number: int, sizes: Sequence[int]) -> list[int]:
    digits: list[int] = []
    for size in reversed(sizes):
        digits.insert(0, number % size)
        number //= size
    return digits


def _joined(tables: Tables) -> Tables:
    """Gives groups with the same rows and columns one number."""
    count = len(tables.earlier)
    known: dict[object, int] = {}
    kept: list[int] = []
    renumber: list[int] = []
    for group in range(count):
        parts = (tables.earlier, tables.later, tables.strength)
        key = tuple((tuple(part[group]), tuple(row[group] for row in part)) for part in parts)
        if key not in known:
            known[key] = len(kept)
            kept.append(group)
        renumber.append(known[key])
    return Tables(
        [[tables.earlier[q][k] for k in kept] for q in kept],
        [[tables.later[q][k] for k in kept] for q in kept],
        [[tables.strength[q][k] for k in kept] for q in kept],
        renumber,
    )


def pack_visibility(
    visibilities: Sequence[Visibility], geometry: Geometry, device: torch.device
) -> PackedVisibility:
    """Packs the attention mask over groups; `unsupported_visibility` must have said None.

    Args:
        visibilities: what restricts and what unlocks; none for plain causality.
        geometry: where the queries and keys stand.
        device: where the kernels run.
    """
    if not visibilities:
        if geometry.is_valid is None:
            return PackedVisibility()
        is_key = geometry.to_columns(geometry.is_valid.to(device))
        return PackedVisibility(None, is_key.to(torch.int32) - 1)
    tables = combined_tables(visibilities)
    assert tables is not None
    renumber = torch.tensor(tables.renumber, dtype=torch.int32, device=device)
    query_group, key_group = combined_groups(visibilities, geometry, renumber)
    if geometry.is_valid is not None:
        key_group = key_group.masked_fill(~geometry.to_columns(geometry.is_valid.to(device)), -1)
    written = min(geometry.keys, geometry.length - geometry.first_key)
    if written < geometry.keys:
        key_group[:, written:] = -1
    numbers, shape = _numbers(tables)
    return PackedVisibility(
        query_group=query_group.contiguous(),
        key_group=key_group.contiguous(),
        tables=torch.tensor(numbers, dtype=torch.int32, device=device),
        shape=shape,
    )


def _numbers(tables: Tables) -> tuple[list[int], Shape]:
    """`PackedVisibility.tables`, and how much of it there is."""
    sides = tables.earlier, tables.later
    groups = len(tables.earlier)
    finite = [sorted({reach for row in table for reach in row if 0 < reach < ALL}) for table in sides]
    count = max(map(len, finite))
    found = [reach for table in sides for row in table for reach in row]
    for table, known in zip(sides, finite):
        found += [ALL, *_bits(table, ALL, math.inf)]
        for reach in known:
            found += [reach, *_bits(table, reach, reach)]
        found += [0] * (1 + groups) * (count - len(known))
    strengths = _strengths(tables)
    if strengths:
        number = int(torch.tensor(math.log2(strengths[0]), dtype=torch.float32).view(torch.int32))
        found += [number, *_bits(tables.strength, *strengths * 2)]
    is_ahead = any(reach > 0 for row in tables.later for reach in row)
    return found, Shape(groups, 1 + count, is_ahead, bool(strengths))


def _bits(table: Sequence[Sequence[float]], low: float, high: float) -> list[int]:
    """For each row of a table the bits of the entries from `low` to `high`."""
    return [sum(1 << place for place, entry in enumerate(row) if low <= entry <= high) for row in table]


def _strengths(tables: Tables) -> list[float]:
    """The strengths other than 1 with which keys ahead are attended to."""
    return sorted({entry for row in tables.strength for entry in row if entry != 1})


@dataclass(frozen=True, eq=False)
class PackedEdits:
    """How the touched rows change, as the kernels take it. Later positions have no gain, no bias and are text.

    Attributes:
        amplified: `(batch, queries)` booleans, rows whose scores change; None for none.
        gain: `(batch, positions)` fp32, or None for 0.
        bias: `(batch, positions)` fp32, or None for 0.
        heads: `(batch, heads)` fp32, the factor of both in each head, or None for 1.
        signed: whether the gain is on the score itself instead of its size.
        moved: `(batch, queries)` booleans, rows whose weight may be moved; None for none.
        key_class: `(batch, positions)` int8, the `KeyClass` of each position; None without a redistribution.
        settings: share removed, rho and mass floor; see `Redistribution`.
    """

    amplified: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    heads: Tensor | None = None
    signed: bool = False
    moved: Tensor | None = None
    key_class: Tensor | None = None
    settings: tuple[float, float, float] = (0.0, 0.0, 0.0)


def unsupported_edits(
    amplifications: Sequence[Amplification], redistributions: Sequence[Redistribution]
) -> str | None:
    """Says why the kernels cannot take these edits, or None if they can."""
    if len(amplifications) > 1:
        return "several interventions change the scores"
    if len(redistributions) > 1:
        return "several interventions move weight"
    if any(item.head_cap is not None for item in amplifications):
        return "an amplification is scaled per head"
    return None


def pack_edits(
    amplification: Amplification | None, redistribution: Redistribution | None, device: torch.device
) -> PackedEdits:
    """Packs what is done to scores and weights; tensors that lie as the kernels need them are taken as they are.

    Args:
        amplification: change of the scores, or None.
        redistribution: change of the weights, or None.
        device: where the kernels run.
    """
    given: dict[str, Any] = {}
    if amplification is not None:
        item = amplification
        given["amplified"] = placed(item.is_touched, device, torch.bool)
        given["gain"] = None if item.gain is None else placed(item.gain, device, torch.float32)
        given["bias"] = None if item.bias is None else placed(item.bias, device, torch.float32)
        if item.heads is not None:
            given["heads"] = placed(item.per_head(item.heads.shape[-1]), device, torch.float32)
        given["signed"] = item.signed
    if redistribution is not None:
        move = redistribution
        given["moved"] = placed(move.is_touched, device, torch.bool)
        given["key_class"] = placed(move.key_class, device, torch.int8)
        given["settings"] = move.removed_fraction, move.rho, move.mass_floor
    return PackedEdits(**given)


def placed(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A tensor on a device, of a type, contiguous, and aligned to 16 bytes; itself if it is all that."""
    found = tensor.to(device, dtype).contiguous()
    return found.clone() if found.data_ptr() % 16 else found
