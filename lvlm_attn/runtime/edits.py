"""What interventions do to one attention call, after the user's backend has run.

In this order, whatever the order of the interventions: the mask (visibility and extra keys), scores (amplification),
weights (redistribution and free edits, in the order given), then readouts; extra keys with a gate are added last.
Only touched rows are computed again. Edits of weights see the keys of the sequence; what lies on extra keys stays as
it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.extra import ExtraKeys, add_gated, with_extra
from lvlm_attn.kernels.readouts import Reading, Readout, read, read_weights
from lvlm_attn.kernels.spec import Amplification, Redistribution, amplified
from lvlm_attn.kernels.torch_path import Rows, redistribute, row_outputs, row_weights, write_rows
from lvlm_attn.kernels.unlocked import attend_unlocked
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.kernels.visible_path import visible_mask, write_visible
from lvlm_attn.runtime.checked import checked_weights
from lvlm_attn.runtime.collected import CollectedEdits, Edit
from lvlm_attn.runtime.corrected import correct, may_correct
from lvlm_attn.runtime.row_counts import count_amplified, count_free, count_moved


def apply_edits(
    output: Tensor,
    full: Tensor | None,
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    *,
    log_sum_exp: Tensor | None = None,
    is_visible: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Corrects the touched rows or computes them again, with all edits, and writes those that changed.

    Args:
        output: `(batch, queries, heads, head_dim)`, what the backend made.
        full: the backend's weights `(batch, heads, queries, keys)`, or None.
        call: the innermost call.
        edits: what the interventions at this layer ask.
        attention: the attention call.
        log_sum_exp: `(batch, heads, queries)` of what the backend did, or None if it is not known.
        is_visible: whether the output has the visibilities already.

    Returns:
        Output and weights with the edits.

    Raises:
        LvlmAttnError: if a free edit returns another shape, or would hold too large a matrix.
    """
    if (edits.visible or edits.extras) and not is_visible:
        output, log_sum_exp = _visible(output, log_sum_exp, edits, attention)
    held = _measured_in_chunks(edits, attention)
    shown: list[Visibility | ExtraKeys] = [*edits.visible, *edits.extras] if full is not None else []
    looked = [wanted.is_read.to(attention.query.device) for _, wanted in held]
    rows = _rows(call, edits, attention, looked, shown)
    corrected = None
    if rows is not None and full is None and not held and may_correct(edits, attention):
        corrected = correct(output, log_sum_exp, call, edits, attention, rows)
    if corrected is not None:
        output = corrected
    elif rows is not None:
        is_lone = len(edits.edits) == 1 and not shown and not looked
        output, full = _edit_rows(output, full, edits, attention, rows, held, is_lone=is_lone)
    else:
        for (layer, item), wanted in held:
            item.read(layer, _read(edits, attention, wanted))
    for extra in edits.gated:
        output = add_gated(output, attention, extra)
    return output, full


def _visible(
    output: Tensor, log_sum_exp: Tensor | None, edits: CollectedEdits, attention: AttentionCall
) -> tuple[Tensor, Tensor | None]:
    """The output with the visibilities and extra keys, and its log-sum-exp if that is known still."""
    if log_sum_exp is not None and not edits.extras:
        joined = attend_unlocked(output, log_sum_exp, attention, edits.visible)
        if joined is not None:
            return joined
    return write_visible(output, attention, edits.visible, edits.extras), None


def _edit_rows(
    output: Tensor,
    full: Tensor | None,
    edits: CollectedEdits,
    attention: AttentionCall,
    rows: Rows,
    held: Sequence[tuple[Edit, Readout]],
    *,
    is_lone: bool,
) -> tuple[Tensor, Tensor | None]:
    """The four steps for some rows, and what they changed written into output and weights; see `apply_edits`."""
    keys, values, mask = _mask(edits, attention, rows)
    weights = row_weights(
        rows.take(attention.query),
        keys,
        scaling=attention.scaling,
        mask=mask,
        softcap=attention.softcap,
        edit=_scores(edits, attention, rows),
    )
    columns = attention.geometry.keys
    weights, beside = weights[..., :columns], weights[..., columns:]
    weights, is_changed = _weights(edits, attention, rows, weights, is_lone=is_lone)
    _readouts(edits, attention, rows, weights, held)
    if edits.changes_weights:
        total = torch.cat((weights, beside), -1) if edits.extras else weights
        output = write_rows(output, row_outputs(total, values), rows, is_changed)
    if full is not None:
        if edits.visible or edits.extras:
            is_changed = torch.ones_like(is_changed)
        full = write_rows(full.transpose(1, 2), weights, rows, is_changed).transpose(1, 2)
    return output, full


def _mask(
    edits: CollectedEdits, attention: AttentionCall, rows: Rows
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Step 1: keys and values that some rows may attend to, extra ones at the end, and the mask over them."""
    return with_extra(attention, visible_mask(attention, edits.visible, rows), edits.extras, rows)


def _scores(edits: CollectedEdits, attention: AttentionCall, rows: Rows) -> Callable[[Tensor], Tensor] | None:
    """Step 2: what amplifications make of scores `(batch, heads, rows, keys)`; those of extra keys stay."""
    amplifications, geometry = edits.amplifications, attention.geometry
    if not amplifications:
        return None

    def amplify(scores: Tensor) -> Tensor:
        own, beside = scores[..., : geometry.keys], scores[..., geometry.keys :]
        for spec in amplifications:
            own = amplified(own, spec, geometry, spec.is_touched.gather(1, rows.index))
        return torch.cat((own, beside), -1) if edits.extras else own

    return amplify


def _weights(
    edits: CollectedEdits, attention: AttentionCall, rows: Rows, weights: Tensor, *, is_lone: bool
) -> tuple[Tensor, Tensor]:
    """Step 3: moves weight and lets free edits change it, in order; counts what was changed, scores included.

    Args:
        edits: what is asked.
        attention: the attention call.
        rows: the rows.
        weights: `(batch, heads, rows, keys)`, after the softmax of the edited scores.
        is_lone: whether nobody needs the weights of rows that stay.

    Returns:
        The new weights, and `(batch, heads, rows)`, True where a row's scores or weights were changed.
    """
    is_changed = torch.zeros(weights.shape[:-1], dtype=torch.bool, device=weights.device)
    for (layer, item), spec in zip(edits.edits, edits.specs):
        if isinstance(spec, Amplification):
            is_row = spec.changes(rows.index, weights.shape[1])
            count_amplified(layer, spec, is_row.shape[1], is_row.device)
            is_changed = is_changed | is_row
        elif spec is not None:
            new, is_row, moved = redistribute(weights, spec, attention.geometry)
            is_row = is_row & spec.is_touched.gather(1, rows.index)[:, None]
            count_moved(layer, is_row, moved, spec.is_touched)
            # Rows that stay are not written back, so a single edit need not keep their weights.
            weights = new if is_lone else torch.where(is_row[..., None], new, weights)
            is_changed = is_changed | is_row
        if item.overrides("edit_weights"):
            given = weights.clone()  # it may write into what it is given
            edited = checked_weights(item, layer, item.edit_weights(layer, given), given)
            count_free(layer, weights, edited)
            is_row = (edited != weights).any(-1) if edited is given else torch.ones_like(is_changed)
            weights, is_changed = edited, is_changed | is_row
    return weights, is_changed


def _readouts(
    edits: CollectedEdits,
    attention: AttentionCall,
    rows: Rows,
    weights: Tensor,
    held: Sequence[tuple[Edit, Readout]],
) -> None:
    """Step 4: hands interventions what they asked for, read off weights that are held."""
    for (layer, item), wanted in held:
        total = _read(edits, attention, Readout(wanted.is_read)).log_sum_exp
        item.read(layer, read_weights(weights, rows, total, wanted, attention.geometry, attention.memo))


def _measured_in_chunks(edits: CollectedEdits, attention: AttentionCall) -> list[tuple[Edit, Readout]]:
    """Serves the readouts for which no weights need be held; gives those that are left, all or none."""
    if not edits.readouts:
        return []
    moves = edits.redistributions
    if edits.extras or moves[1:] or edits.is_free:
        return edits.readouts
    for (layer, item), wanted in edits.readouts:
        item.read(layer, _read(edits, attention, wanted, moves[0] if moves else None))
    return []


def _read(
    edits: CollectedEdits, attention: AttentionCall, wanted: Readout, move: Redistribution | None = None
) -> Reading:
    return read(
        attention,
        wanted,
        visibility=edits.visible,
        amplification=edits.amplifications,
        redistribution=move,
    )


def _rows(
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    looked: list[Tensor],
    shown: Sequence[Visibility | ExtraKeys],
) -> Rows | None:
    """The rows whose weights are needed: changed ones, those of readouts, those `shown` in weights the user sees."""
    query = attention.query
    if edits.is_free:
        _refuse_above_limit(attention, call.edit_limit, edits.edits[0].layer.index)
        return Rows.of(torch.ones_like(query[:, 0, :, 0], dtype=torch.bool))
    touched = [spec.is_touched for spec in edits.specs if spec is not None] + looked
    found = (item.touched(attention.geometry) for item in shown)
    touched += [is_touched.to(query.device) for is_touched in found if is_touched is not None]
    if not touched:
        return None
    return call.rows_of_any(touched)


def _refuse_above_limit(attention: AttentionCall, limit: int, layer: int) -> None:
    batch, heads, queries, _ = attention.query.shape
    keys = attention.key.shape[2]
    size = batch * heads * queries * keys * 4
    if size > limit:
        raise UnsupportedError(
            f"edit_weights at layer {layer} would hold a weight matrix of {size / 2**20:.0f} MiB "
            f"({batch} x {heads} x {queries} x {keys} in fp32), above the limit of "
            f"{limit / 2**20:.0f} MiB; shorten the prompt, use the reweigh site, or pass "
            f"wrap(..., edit_limit=bytes)."
        )
