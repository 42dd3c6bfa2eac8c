"""What interventions do to one attention call, after the user's backend has run.

In this order, whatever the order of the interventions: what may be read (visibility and extra keys), scores
(amplification), weights (redistribution and free edits, in the order given), then readouts, then readings of extra
keys with a gate. Only touched rows are computed again. Edits of weights see the keys of the sequence; what lies on
extra keys stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.interventions.base import Intervention, Layer
from lvlm_attn.interventions.call import Call
from lvlm_attn.kernels.extra import ExtraKeys, add_gated, with_extra
from lvlm_attn.kernels.readouts import Readout, read_weights
from lvlm_attn.kernels.readouts import read as read_off
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution, Reweighing, amplified
from lvlm_attn.kernels.torch_path import (
    Rows,
    mask_rows,
    redistribute,
    row_outputs,
    row_weights,
    write_rows,
)
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.kernels.visible_path import visible_mask, write_visible


class Edit(NamedTuple):
    """An intervention at the layer as it sees it."""

    layer: Layer
    item: Intervention


class Attention(NamedTuple):
    """One attention call as the model makes it.

    Attributes:
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, head_dim)`.
        mask: what the backend's mask function made.
        geometry: where the queries and keys stand.
        scaling: factor on the scores.
        softcap: bound of the scores by tanh, for models that have one.
        kwargs: all that the model passed to the backend beside the tensors.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Any
    geometry: Geometry
    scaling: float
    softcap: float | None
    kwargs: Mapping[str, Any]

    @staticmethod
    def of(
        call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Mapping[str, Any]
    ) -> Attention:
        """The attention of the innermost call, which knows the geometry."""
        geometry = call.geometry(key.shape[2], kwargs.get("sliding_window"))
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return Attention(query, key, value, mask, geometry, scaling, kwargs.get("softcap"), kwargs)


class Asked(NamedTuple):
    """What interventions ask of one attention call; every site is called once.

    Attributes:
        visible: what may be read.
        extras: keys from elsewhere that share the softmax.
        gated: keys from elsewhere beside it.
        specs: for each edit how weights change, or None.
        reads: `(batch, queries)` rows whose weights an edit wants to see.
        readouts: what else an edit wants to read off the weights.
        is_free: whether an edit changes the whole matrix of weights.
    """

    visible: list[Visibility]
    extras: list[ExtraKeys]
    gated: list[ExtraKeys]
    specs: list[Reweighing | None]
    reads: list[tuple[Edit, Tensor]]
    readouts: list[tuple[Edit, Readout]]
    is_free: bool

    @staticmethod
    def of(edits: Sequence[Edit]) -> Asked:
        """Calls the sites of all edits, in order."""
        seen = [item.visibility(layer) for layer, item in edits if item.overrides("visibility")]
        beside = [item.extra_keys(layer) for layer, item in edits if item.overrides("extra_keys")]
        looks = [(edit, edit.item.readout(edit.layer)) for edit in edits if edit.item.overrides("readout")]
        return Asked(
            visible=[item for item in seen if item is not None],
            extras=[item for item in beside if item is not None and item.gate is None],
            gated=[item for item in beside if item is not None and item.gate is not None],
            specs=[item.reweigh(layer) for layer, item in edits],
            reads=[
                (edit, rows) for edit, rows in looks if rows is not None and not isinstance(rows, Readout)
            ],
            readouts=[(edit, wanted) for edit, wanted in looks if isinstance(wanted, Readout)],
            is_free=any(item.overrides("edit_weights") for _, item in edits),
        )

    @property
    def amplifications(self) -> list[Amplification]:
        """What is done to scores."""
        return [spec for spec in self.specs if isinstance(spec, Amplification)]

    @property
    def redistributions(self) -> list[Redistribution]:
        """What is moved between keys."""
        return [spec for spec in self.specs if isinstance(spec, Redistribution)]

    @property
    def is_nothing(self) -> bool:
        """Whether the call stays plain attention."""
        lists = (self.visible, self.extras, self.gated, self.reads, self.readouts)
        return not any(lists) and not self.is_free and all(spec is None for spec in self.specs)


def apply_edits(
    output: Tensor,
    full: Tensor | None,
    call: Call,
    edits: list[Edit],
    asked: Asked,
    given: Attention,
    *,
    is_visible: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Computes the touched rows again, with all edits, and writes those that changed.

    Args:
        output: `(batch, queries, heads, head_dim)`, what the backend made.
        full: the backend's weights `(batch, heads, queries, keys)`, or None.
        call: the innermost call.
        edits: all interventions at this layer, in order.
        asked: what they ask.
        given: the attention call.
        is_visible: whether the output has the visibilities already.

    Returns:
        Output and weights with the edits.

    Raises:
        LvlmAttnError: if a free edit returns another shape, or would hold too large a matrix.
    """
    query, key, value, mask, geometry, scaling, softcap, _ = given
    visible, extras, gated, specs, reads, readouts, is_free = asked
    amplifications, moves = asked.amplifications, asked.redistributions
    if (visible or extras) and not is_visible:
        output = write_visible(
            output,
            query,
            key,
            value,
            visibilities=visible,
            geometry=geometry,
            mask=mask,
            scaling=scaling,
            softcap=softcap,
            extras=extras,
            memo=call.masks,
        )
    shown: list[Visibility | ExtraKeys] = [*visible, *extras] if full is not None else []
    measure = partial(
        read_off,
        query,
        key,
        scaling=scaling,
        geometry=geometry,
        visibility=visible,
        amplification=amplifications,
        mask=mask,
        softcap=softcap,
    )
    if not (extras or moves[1:] or is_free):
        for (layer, item), wanted in readouts:
            item.measure(layer, measure(wanted, redistribution=moves[0] if moves else None))
        readouts = []
    looked = [is_read for _, is_read in reads]
    looked += [wanted.is_read.to(query.device) for _, wanted in readouts]
    rows = _rows(call, edits, asked, looked, query, key, shown, geometry)
    if rows is None:
        for (layer, item), wanted in readouts:
            item.measure(layer, measure(wanted))
        for extra in gated:
            output = add_gated(output, query, extra, geometry, scaling, softcap)
        return output, full

    def amplify(scores: Tensor) -> Tensor:
        own, beside = scores[..., : geometry.keys], scores[..., geometry.keys :]
        for spec in amplifications:
            own = amplified(own, spec, geometry, spec.is_touched.gather(1, rows.index))
        return torch.cat((own, beside), -1) if extras else own

    dtype = torch.promote_types(query.dtype, torch.float32)
    base = visible_mask(visible, mask, rows, geometry, dtype) if visible else mask_rows(mask, rows, geometry)
    keys, values, base = with_extra(key, value, base, extras, rows, geometry)
    weights = row_weights(
        rows.take(query),
        keys,
        scaling=scaling,
        mask=base,
        softcap=softcap,
        edit=amplify if amplifications else None,
    )
    weights, beside = weights[..., : geometry.keys], weights[..., geometry.keys :]
    is_changed = torch.zeros(weights.shape[:-1], dtype=torch.bool, device=weights.device)
    for (layer, item), spec in zip(edits, specs):
        if isinstance(spec, Amplification):
            is_row = spec.is_touched.gather(1, rows.index)[:, None].expand_as(is_changed)
            if spec.heads is not None:
                is_row = is_row & (spec.per_head(is_row.shape[1])[..., None] != 0).to(is_row.device)
            _count(layer.stats, int(layer), is_row, is_row.new_zeros(()), spec.is_touched)
            is_changed = is_changed | is_row
        elif spec is not None:
            new, is_row, moved = redistribute(weights, spec, geometry)
            is_row = is_row & spec.is_touched.gather(1, rows.index)[:, None]
            _count(layer.stats, int(layer), is_row, moved, spec.is_touched)
            # Rows that stay are not written back, so with a single edit their weights need not be kept.
            is_lone = len(edits) == 1 and not shown and not looked
            weights = new if is_lone else torch.where(is_row[..., None], new, weights)
            is_changed = is_changed | is_row
        if item.overrides("edit_weights"):
            edited = item.edit_weights(layer, weights)
            if edited.shape != weights.shape:
                raise LvlmAttnError(
                    f"{item.title}.edit_weights returned shape {tuple(edited.shape)} at layer {int(layer)}; it "
                    f"must keep {tuple(weights.shape)}, which is (batch, heads, queries, keys)."
                )
            if edited is not weights:
                weights, is_changed = edited, torch.ones_like(is_changed)
    for (layer, item), is_read in reads:
        item.read(layer, weights, rows.index, is_read.gather(1, rows.index) & rows.is_touched)
    for (layer, item), wanted in readouts:
        total = measure(Readout(wanted.is_read)).log_sum_exp
        item.measure(layer, read_weights(weights, rows, total, wanted, geometry))
    if any(spec is not None for spec in specs) or is_free:
        total = torch.cat((weights, beside), -1) if extras else weights
        output = write_rows(output, row_outputs(total, values), rows, is_changed)
    if full is not None:
        if visible or extras:
            is_changed = torch.ones_like(is_changed)
        full = write_rows(full.transpose(1, 2), weights, rows, is_changed).transpose(1, 2)
    for extra in gated:
        output = add_gated(output, query, extra, geometry, scaling, softcap)
    return output, full


def _rows(
    call: Call,
    edits: list[Edit],
    asked: Asked,
    looked: list[Tensor],
    query: Tensor,
    key: Tensor,
    shown: Sequence[Visibility | ExtraKeys],
    geometry: Geometry,
) -> Rows | None:
    """The rows whose weights are needed: changed ones, rows looked at, and those `shown` in weights the user sees."""
    if asked.is_free:
        _refuse_above_limit(query, key, call.edit_limit, int(edits[0].layer))
        return Rows.of(torch.ones_like(query[:, 0, :, 0], dtype=torch.bool))
    touched = [spec.is_touched for spec in asked.specs if spec is not None] + looked
    found = (item.touched(geometry) for item in shown)
    touched += [is_touched.to(query.device) for is_touched in found if is_touched is not None]
    if not touched:
        return None
    if all(item is touched[0] for item in touched):
        return call.rows_of(touched[0])
    return Rows.of(torch.stack(touched).any(0))


def _count(stats: dict[Any, Any], layer: int, is_row: Tensor, moved: Tensor, is_touched: Tensor) -> None:
    """Adds up, per layer: rows changed, rows that could be, and the weight moved. No value leaves the device."""
    changed = is_row.sum(dtype=torch.float64)
    possible = is_touched.sum(dtype=torch.float64) * is_row.shape[1]
    mass = (moved * is_row).sum(dtype=torch.float64)
    counts = torch.stack((changed, possible, mass))
    stats[layer] = stats[layer] + counts if layer in stats else counts


def _refuse_above_limit(query: Tensor, key: Tensor, limit: int, layer: int) -> None:
    batch, heads, queries, _ = query.shape
    size = batch * heads * queries * key.shape[2] * 4
    if size > limit:
        raise UnsupportedError(
            f"edit_weights at layer {layer} would hold a weight matrix of {size / 2**20:.0f} MiB "
            f"({batch} x {heads} x {queries} x {key.shape[2]} in fp32), above the limit of "
            f"{limit / 2**20:.0f} MiB; shorten the prompt, use the reweigh site, or pass "
            f"wrap(..., edit_limit=bytes)."
        )
