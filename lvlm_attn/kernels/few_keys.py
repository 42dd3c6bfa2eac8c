"""Which keys rows have to read again, and what they are: for the rows of a prefill, or for many decoding steps."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.correction import ByClass, per_group
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
        columns: `(n,)`, or `(batch, n)` where samples differ much.
        is_few: `(batch, n)`, False at columns that are none of the few of a sample; None if all are.
        base: the class of all other keys.
        levels: for each bias `(batch, 1)`, what it is on all other keys.
    """

    columns: Tensor
    is_few: Tensor | None
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
    columns, is_few = _packed(few, count)
    return Chosen(columns, is_few, base, found)


def _packed(few: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
    """The columns of `(batch, keys)` True at few keys, shared by the samples unless they are too unlike."""
    if few.shape[0] == 1:
        return few[0].nonzero()[:, 0], None
    columns = few.any(0).nonzero()[:, 0]
    if len(columns) > 1.5 * count:
        columns = few.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    is_few = at_columns(few, columns)
    return columns, None if bool(is_few.all()) else is_few


def bias_of(
    call: AttentionCall,
    visibilities: Sequence[Visibility],
    rows: Rows,
    columns: Tensor,
    is_few: Tensor | None,
) -> Tensor | None:
    """What is added to the scores of few keys in some rows, see `few_weights`."""
    if not columns.shape[-1]:
        return None
    mask = visible_mask(call, visibilities, rows, columns)
    if mask is not None:
        mask = additive(mask, call.score_dtype)
    if is_few is not None:
        hidden = additive(is_few, call.score_dtype)[:, None, None]
        mask = hidden if mask is None else mask + hidden
    return None if mask is None else folded(mask, call)


def with_mask(bias: Tensor | None, call: AttentionCall, columns: Tensor) -> Tensor:
    """The dense mask of a call of one query at few keys, beside what is added to their scores already."""
    dense = call.memo.shared((with_mask, call.mask), lambda: additive(call.mask, call.score_dtype))
    found = folded(at_columns(dense, columns), call)
    return found if bias is None else found + bias


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
        bias: `(1 or groups, 1, n)`, added to their scores; None for 0.
        by: what classes do.
    """

    columns: Tensor
    bias: Tensor | None
    by: ByClass


class Steps(NamedTuple):
    """The next decoding steps of a layer.

    Attributes:
        first: the length of the sequence in the first of them.
        listed: for each step what it needs; None where the keys are too many.
        key: what else it holds for.
    """

    first: int
    listed: Sequence[Step | None]
    key: Hashable


def step_of(spec: Redistribution, call: AttentionCall) -> Step | None:
    """What the decoding step of a call needs, from what an earlier step listed where that holds.

    A query attends to the whole sequence, and stands at its end. What is generated is text.

    Args:
        spec: what to move; its `kept` holds what is listed.
        call: the call of one query; a dense mask of its own is not looked at.

    Returns:
        What it needs; None if the keys are too many.
    """
    length = call.geometry.length
    kept = {} if spec.kept is None else spec.kept
    key = (spec.removed_fraction, spec.rho, spec.mass_floor, call.score_dtype, call.key.shape[:2])
    found: Steps | None = kept.get(Steps)
    if found is None or found.key != key or not 0 <= length - found.first < len(found.listed):
        found = kept[Steps] = Steps(length, _steps(spec, call), key)
    return found.listed[length - found.first]


def _steps(spec: Redistribution, call: AttentionCall) -> Sequence[Step | None]:
    length = call.geometry.length
    kinds = spec.key_class[:, :length]
    kinds = torch.nn.functional.pad(kinds, (0, length - kinds.shape[1]))
    is_valid = call.geometry.is_valid
    chosen = choose(kinds, None if is_valid is None else is_valid.to(kinds.device))
    if chosen is None:
        return [None] * STEPS
    coming = STEPS - 1 if chosen.base != KeyClass.TEXT else 0
    kinds = torch.nn.functional.pad(at_columns(kinds, chosen.columns), (0, coming))
    by = ByClass.of(spec, kinds, chosen.base, call.score_dtype, call.key.shape[1])
    return [Step(columns, bias, by) for columns, bias in _listed(chosen, length, coming, call)]


def _listed(
    chosen: Chosen, length: int, coming: int, call: AttentionCall
) -> Iterable[tuple[Tensor, Tensor | None]]:
    """Columns and bias in each of the next steps: as many keys in all of them, those to come hidden."""
    columns, device, dtype = chosen.columns, chosen.columns.device, call.score_dtype
    hidden = None
    if chosen.is_few is not None:
        hidden = per_group(additive(chosen.is_few, dtype)[:, None], call.key.shape[1])
    if not coming:
        return [(columns, hidden)] * STEPS
    ahead = torch.arange(coming, device=device)
    is_there = ahead < torch.arange(STEPS, device=device)[:, None]
    new = torch.where(is_there, length + ahead, 0)
    new = new if columns.dim() == 1 else new[:, None].expand(-1, len(columns), -1)
    listed = torch.cat((columns.expand(STEPS, *columns.shape), new), -1)
    bias = additive(is_there, dtype)[:, None, None]
    old = torch.zeros(1, 1, columns.shape[-1], dtype=dtype, device=device) if hidden is None else hidden
    bias = torch.cat((old.expand(STEPS, -1, -1, -1), bias.expand(-1, len(old), -1, -1)), -1)
    return zip(listed.unbind(0), bias.unbind(0))
