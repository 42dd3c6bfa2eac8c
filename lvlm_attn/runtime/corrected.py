"""Edits of one attention call as a correction of the backend's output, where few keys have to be read again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall, Inputs
from lvlm_attn.kernels.corrected import Corrected, corrected_query, corrected_rows, suits
from lvlm_attn.kernels.correction import LIMITS, Judged
from lvlm_attn.kernels.few_keys import mask_of, step_of
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.runtime.collected import CollectedEdits
from lvlm_attn.runtime.row_counts import count_amplified, count_judged


def wants_log_sum_exp(edits: CollectedEdits) -> bool:
    """Whether the log-sum-exp of rows is of use to these edits."""
    if edits.extras or edits.is_free:
        return False
    return bool(edits.visible) or suits(edits.amplifications, edits.redistributions)


def may_correct(edits: CollectedEdits, attention: AttentionCall) -> bool:
    """Whether a call may be corrected: where reading values costs nothing, and without gradients."""
    if edits.extras or edits.is_free or not suits(edits.amplifications, edits.redistributions):
        return False
    tensors = (attention.query, attention.key, attention.value)
    is_grown = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    is_plain = attention.softcap is None and attention.kwargs.get("s_aux") is None
    return is_plain and not is_grown and reading_is_free(attention.query.device)


def correct(
    output: Tensor,
    log_sum_exp: Tensor | None,
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    rows: Rows,
) -> Tensor | None:
    """Changes the touched rows, and counts what was changed.

    Args:
        output: `(batch, queries, heads, width)`, with the visibilities.
        log_sum_exp: `(batch, heads, queries)`, with the visibilities; None to compute what is needed.
        call: the innermost call.
        edits: what the interventions at this layer ask; see `may_correct`.
        attention: the attention call.
        rows: the rows that any edit touches.

    Returns:
        The output with the edits; None, with nothing changed, if the rows are to be computed from all keys.
    """
    amplifications, redistributions = edits.amplifications, edits.redistributions
    move = redistributions[0] if redistributions else None
    found: Corrected | None
    if (
        move is not None
        and log_sum_exp is not None
        and not amplifications
        and is_step(edits, attention, move, output)
    ):
        judged = corrected_step(output, log_sum_exp, attention, move)
        found = None if judged is None else Corrected(output, [judged])
    else:
        found = corrected_rows(
            output,
            log_sum_exp,
            attention,
            rows,
            visibility=edits.visible,
            amplification=amplifications,
            redistribution=move,
        )
    if found is None:
        return None
    _count(found, edits, attention)
    return found.output


def corrected_step(
    output: Tensor, log_sum_exp: Tensor, attention: AttentionCall, move: Redistribution
) -> Judged | None:
    """Moves weight in the output of one decoding step, see `corrected_query`."""
    step = step_of(move, attention) if output.dtype in LIMITS else None
    if step is None:
        return None
    touched, bias = move.is_touched, mask_of(attention, step.columns)
    is_all = attention.memo.shared((corrected_step, touched), lambda: bool(touched.all()))
    inputs = Inputs(attention.query, attention.key, attention.value, attention.scaling)
    return corrected_query(output, log_sum_exp, inputs, step, bias, None if is_all else touched)


def is_step(edits: CollectedEdits, attention: AttentionCall, move: Redistribution, output: Tensor) -> bool:
    """Whether a call is of one query that attends to all of the sequence, for which keys are listed ahead."""
    geometry = attention.geometry
    if geometry.queries != 1 or move.kept is None or edits.visible or geometry.window is not None:
        return False
    is_contiguous = attention.query.is_contiguous() and output.is_contiguous()
    return is_contiguous and attends_to_all(geometry, attention.mask)


def attends_to_all(geometry: Geometry, mask: Any) -> bool:
    """Whether the mask of a query at the end says of all columns, from the first position on, what it attends to."""
    if isinstance(mask, Tensor) and mask.dim() == 4:
        return geometry.first_key == 0 and mask.shape[3] == geometry.keys
    return geometry.keys == geometry.length and geometry.is_valid is None


def _count(found: Corrected, edits: CollectedEdits, attention: AttentionCall) -> None:
    heads, device = attention.query.shape[1], attention.query.device
    for (layer, _), spec in zip(edits.edits, edits.specs):
        if isinstance(spec, Amplification):
            count_amplified(layer, spec, heads, device)
        elif spec is not None:
            for place, judged in enumerate(found.judged):
                # The rows where weight could be moved are counted with the first chunk.
                count_judged(layer, judged, spec.is_touched if place == 0 else spec.is_touched[:0], heads)
