"""Specs packed into flat tensors for the Triton kernels; nothing here needs Triton.

A pair of positions is judged from two small integers, the groups of the query and of the key, and their distance.
Everything packed is O(positions); nothing is ever (queries, keys).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.visibility import ALL, Visibility

LOG2E = 1.4426950408889634
MAX_GROUPS = 30
"""Groups that fit the bits of an int32; more are refused."""


@dataclass(frozen=True)
class PackedVisibility:
    """The attention mask over groups, as the kernels take it.

    Attributes:
        query_group: `(batch, queries)` int32, or None if no visibility acts.
        key_group: `(batch, keys)` int32, -1 at columns nobody may attend to (padding, not yet written); None if
            every column up to the causal bound is open.
        earlier_bits: `(groups,)` int32, bit k of entry q set where group q attends to all earlier keys of group k.
        later_bits: the same for keys ahead.
        earlier: `(reaches, 1 + groups)` int32, one line for each reach that is neither 0 nor `ALL`: the reach, then
            for each group the bits of the groups it attends to that far back; None without such reaches.
        later: the same for keys ahead, with as many lines; lines may be empty.
        bias: `(1 + groups,)` int32: the bits of the fp32 number, in units of log 2, that is added to scores of keys
            ahead; then for each group the bits of the groups it is added for; None if it is 0.
        earlier_table: `(groups * groups,)` int32, the reaches back of each pair of groups.
        later_table: the same for keys ahead.
        groups: how many groups there are.
        reaches: number of lines in `earlier` and in `later`.
        has_later: whether any query attends ahead.
    """

    query_group: Tensor | None
    key_group: Tensor | None
    earlier_bits: Tensor | None = None
    later_bits: Tensor | None = None
    earlier: Tensor | None = None
    later: Tensor | None = None
    bias: Tensor | None = None
    earlier_table: Tensor | None = None
    later_table: Tensor | None = None
    groups: int = 1
    reaches: int = 0
    has_later: bool = False

    @property
    def has_table(self) -> bool:
        """Whether a visibility acts."""
        return self.query_group is not None

    @property
    def has_strength(self) -> bool:
        """Whether keys ahead weigh less."""
        return self.bias is not None


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
    if math.prod(item.groups for item in visibilities) > 4096:
        return "the visibilities have too many groups together"
    tables = combined_tables(visibilities)
    if tables is None:
        return "two visibilities open the same keys ahead with different strengths and reaches"
    if len(tables.earlier) > MAX_GROUPS:
        return f"the visibilities have {len(tables.earlier)} groups together, more than {MAX_GROUPS}"
    if len(_strengths(tables)) > 1:
        return "keys ahead are open with several strengths"
    return None


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
    written = min(geometry.keys, geometry.length - geometry.first_key)
    if not visibilities:
        if geometry.is_valid is None:
            return PackedVisibility(None, None)
        is_key = geometry.to_columns(geometry.is_valid.to(device))
        return PackedVisibility(None, is_key.to(torch.int32) - 1)
    tables = combined_tables(visibilities)
    assert tables is not None
    of_query = of_key = torch.zeros((), dtype=torch.long, device=device)
    for item in visibilities:
        group = item.group.to(device)
        of_query = of_query * item.groups + Visibility.of_queries(group, geometry)
        of_key = of_key * item.groups + geometry.to_columns(group).long()
    renumber = torch.tensor(tables.renumber, dtype=torch.int32, device=device)
    key_group = renumber[of_key]
    if geometry.is_valid is not None:
        key_group = key_group.masked_fill(~geometry.to_columns(geometry.is_valid.to(device)), -1)
    if written < geometry.keys:
        key_group[:, written:] = -1

    def put(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    finite = [sorted({reach for row in table for reach in row if 0 < reach < ALL}) for table in tables[:2]]
    reaches = max(map(len, finite))
    lines = [
        [[reach, *_bits(table, reach, reach)] for reach in known]
        + [[0] * (1 + len(table))] * (reaches - len(known))
        for table, known in zip((tables.earlier, tables.later), finite)
    ]
    strengths = _strengths(tables)
    bias = None
    if strengths:
        number = int(torch.tensor(math.log2(strengths[0]), dtype=torch.float32).view(torch.int32))
        bias = put([number, *_bits(tables.strength, *strengths * 2)])
    return PackedVisibility(
        query_group=renumber[of_query].contiguous(),
        key_group=key_group.contiguous(),
        earlier_bits=put(_bits(tables.earlier, ALL, math.inf)),
        later_bits=put(_bits(tables.later, ALL, math.inf)),
        earlier=put(lines[0]) if reaches else None,
        later=put(lines[1]) if reaches else None,
        bias=bias,
        earlier_table=put(tables.earlier).flatten(),
        later_table=put(tables.later).flatten(),
        groups=len(tables.earlier),
        reaches=reaches,
        has_later=any(reach > 0 for row in tables.later for reach in row),
    )


def _bits(table: Sequence[Sequence[float]], low: float, high: float) -> list[int]:
    """For each row of a table the bits of the entries from `low` to `high`."""
    return [sum(1 << place for place, entry in enumerate(row) if low <= entry <= high) for row in table]


def _strengths(tables: Tables) -> list[float]:
    """The strengths other than 1 with which keys ahead are attended to."""
    return sorted({entry for row in tables.strength for entry in row if entry != 1})


@dataclass(frozen=True)
class PackedEdits:
    """How the touched rows change, as the kernels take it.

    Attributes:
        key_class: `(batch, keys)` int8, the `KeyClass` of each column; None without a redistribution.
        gain: `(batch, keys)` fp32, or None for 0.
        bias: `(batch, keys)` fp32 in units of log 2, or None for 0.
        head_gain: `(batch, heads)` fp32, the factor of both in each head, or None for 1.
        removed_fraction: see `Redistribution`.
        rho: see `Redistribution`.
        mass_floor: see `Redistribution`.
    """

    key_class: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    head_gain: Tensor | None = None
    removed_fraction: float = 0.0
    rho: float = 0.0
    mass_floor: float = 0.0


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
    if any(item.signed and item.gain is not None for item in amplifications):
        return "an amplification multiplies scores with their sign"
    return None


def pack_edits(
    amplification: Amplification | None,
    redistribution: Redistribution | None,
    geometry: Geometry,
    device: torch.device,
) -> PackedEdits:
    """Packs what is done to scores and weights.

    Args:
        amplification: change of the scores, or None.
        redistribution: change of the weights, or None.
        geometry: where the queries and keys stand.
        device: where the kernels run.
    """
    gain = bias = head_gain = None
    if amplification is not None and amplification.gain is not None:
        gain = geometry.to_columns(amplification.gain.to(device, torch.float32)).contiguous()
    if amplification is not None and amplification.bias is not None:
        bias = geometry.to_columns(amplification.bias.to(device, torch.float32) * LOG2E).contiguous()
    if amplification is not None and amplification.heads is not None:
        per_head = amplification.per_head(amplification.heads.shape[-1])
        head_gain = per_head.to(device, torch.float32).contiguous()
    if redistribution is None:
        return PackedEdits(None, gain, bias, head_gain)
    key_class = geometry.to_columns(redistribution.key_class.to(device, torch.int8)).contiguous()
    item = redistribution
    return PackedEdits(key_class, gain, bias, head_gain, item.removed_fraction, item.rho, item.mass_floor)
