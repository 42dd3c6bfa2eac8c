"""Which keys rows have to read again, and what they are: for the rows of a prefill, or for many decoding steps."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.correction import ByClass
from lvlm_attn.kernels.spec import Geometry, KeyClass, Redistribution, at_columns
from lvlm_attn.kernels.torch_path import Rows, additive
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.kernels.visible_path import visible_mask

MOST = 0.75
"""Largest share of the keys that is still few."""

STEPS = 16
"""Decoding steps for which the keys are listed at a time."""


class Chosen(NamedTuple):
    """A choice of few keys.

    Attributes:
        columns: `(n,)`, or `(batch, n)` where samples differ much; among them some that are as all others are.
        base: the class of all other keys.
        levels: for each bias `(batch, 1)`, what it is on all other keys.
    """

    columns: Tensor
    base: KeyClass
    levels: tuple[Tensor, ...]


def choose(kinds: Tensor, is_key: Tensor | None = None, biases: Sequence[Tensor] = ()) -> Chosen | None:
    """Chooses the class and the biases that are left as they are, so that few keys are of others.

    Args:
        kinds: `(batch, keys)`, the `KeyClass` of each key.
        is_key: `(batch, keys)`, False at columns that no row attends to; None for none.
        biases: `(batch, keys)` each, changes of scores.

    Returns:
        The choice; None if more than `MOST` of the keys would be read.

    Example:
        >>> choose(torch.tensor([[0, 1, 2, 2, 2, 3, 2, 2]])).columns
        tensor([0, 1, 5])
    """
    best: tuple[int, Tensor, KeyClass, tuple[Tensor, ...]] | None = None
    for base in (KeyClass.PATCH, KeyClass.TEXT):
        few, levels = kinds != base, []
        if is_key is not None:
            few = few & is_key
        for bias in biases:
            others = few if is_key is None else few | ~is_key
            # The median is the number that most keys have, where there is one.
            level = bias.masked_fill(others, torch.nan).nanmedian(1, keepdim=True).values.nan_to_num(0.0)
            levels.append(level)
            few = few | ((bias != level) & ~others)
        count = int(few.sum(1).max())
        if best is None or count < best[0]:
            best = count, few, base, tuple(levels)
    assert best is not None
    count, few, base, found = best
    if count > MOST * few.shape[1]:
        return None
    return Chosen(_packed(few, count), base, found)


def _packed(few: Tensor, count: int) -> Tensor:
    """The columns of `(batch, keys)` True at few keys, shared by the samples unless they are too unlike."""
    columns = few.any(0).nonzero()[:, 0]
    if len(columns) > 1.5 * count:
        return few.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return columns


def bias_of(
    call: AttentionCall, visibilities: Sequence[Visibility], rows: Rows, columns: Tensor
) -> Tensor | None:
    """What is added to the scores of few keys in some rows, see `few_weights`."""
    mask = visible_mask(call, visibilities, rows, columns) if columns.shape[-1] else None
    return None if mask is None else folded(additive(mask, call.score_dtype), call)


def mask_of(call: AttentionCall, columns: Tensor) -> Tensor | None:
    """The dense mask of a call of one query at few keys, see `few_weights`; None without one."""
    if not isinstance(call.mask, Tensor):
        return None
    dense = call.memo.shared((mask_of, call.mask), lambda: additive(call.mask, call.score_dtype))
    return folded(at_columns(dense, columns), call)


def folded(bias: Tensor, call: AttentionCall) -> Tensor:
    """`(1 or batch, 1 or heads, 1 or rows, n)` as `(1 or groups, 1 or rows of all heads of a group, n)`."""
    (batch, heads), kv_heads = call.query.shape[:2], call.key.shape[1]
    rows, count = bias.shape[2:]
    if bias.shape[1] == 1:
        shared = kv_heads if bias.shape[0] > 1 else 1
        shape = (bias.shape[0], shared, heads // kv_heads if rows > 1 else 1, rows, count)
        bias = bias[:, :, None].expand(shape)
    else:
        bias = bias.expand(batch, -1, -1, -1)
        shape = (batch, kv_heads, heads // kv_heads, rows, count)
    return bias.reshape(shape[0] * shape[1], shape[2] * rows, count)


def written_and_valid(geometry: Geometry, device: torch.device) -> Tensor | None:
    """`(1 or batch, keys)`, True at columns that hold a key; None if all do."""
    if geometry.is_valid is not None:
        return geometry.to_columns(geometry.is_valid.to(device))
    if geometry.written == geometry.keys:
        return None
    return (torch.arange(geometry.keys, device=device) < geometry.written)[None]


class Step(NamedTuple):
    """What a layer needs in one decoding step.

    Attributes:
        columns: `(n,)`, or `(batch, n)` where samples differ, the keys to read.
        by: what classes do.
    """

    columns: Tensor
    by: ByClass


class Steps(NamedTuple):
    """The next decoding steps of a layer.

    Attributes:
        first: the length of the sequence in the first of them.
        listed: for each step what it needs; None where the keys are too many.
        key: what else it holds for.
        is_valid: `(batch, first)`, see `Geometry`; padding is not among the keys that are listed.
    """

    first: int
    listed: Sequence[Step | None]
    key: Hashable
    is_valid: Tensor | None

    def holds(self, geometry: Geometry, memo: Memo) -> bool:
        """Whether a call, by where it stands, is one of these steps."""
        old, new = self.is_valid, geometry.is_valid
        if not 0 <= geometry.length - self.first < len(self.listed):
            return False
        if old is None or new is None:
            return old is new
        return memo.shared((Steps, old), lambda: torch.equal(old, new[:, : self.first]))


def step_of(spec: Redistribution, call: AttentionCall) -> Step | None:
    """What the decoding step of a call needs, from what an earlier step listed where that holds.

    A query attends to the whole sequence, and stands at its end. What is generated is text.

    Args:
        spec: what to move; its `kept` holds what is listed.
        call: the call of one query; a dense mask of its own is not looked at.

    Returns:
        What it needs; None if the keys are too many.
    """
    kept, geometry = {} if spec.kept is None else spec.kept, call.geometry
    key = (spec.removed_fraction, spec.rho, spec.mass_floor, call.score_dtype, call.key.shape[0])
    found: Steps | None = kept.get(Steps)
    if found is None or found.key != key or not found.holds(geometry, call.memo):
        found = kept[Steps] = Steps(geometry.length, _steps(spec, call), key, geometry.is_valid)
    return found.listed[geometry.length - found.first]


def _steps(spec: Redistribution, call: AttentionCall) -> Sequence[Step | None]:
    """The next steps; the keys to come stand after all others, and each step reads those that are there."""
    length, is_valid = call.geometry.length, call.geometry.is_valid
    kinds = spec.key_class[:, :length]
    kinds = torch.nn.functional.pad(kinds, (0, length - kinds.shape[1]))
    chosen = choose(kinds, None if is_valid is None else is_valid.to(kinds.device))
    if chosen is None:
        return [None] * STEPS
    columns, count, coming = chosen.columns, chosen.columns.shape[-1], STEPS - 1
    kinds = at_columns(kinds, columns)
    if chosen.base == KeyClass.TEXT:
        return [Step(columns, ByClass.of(spec, kinds, chosen.base, call.score_dtype))] * STEPS
    by = ByClass.of(spec, torch.nn.functional.pad(kinds, (0, coming)), chosen.base, call.score_dtype)
    new = torch.arange(length, length + coming, device=columns.device)
    columns = torch.cat((columns, new.expand(*columns.shape[:-1], -1)), -1)
    return [Step(columns[..., :stop], by.first(stop)) for stop in range(count, count + STEPS)]
