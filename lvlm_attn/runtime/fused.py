"""Edits of one attention call on the Triton path, where `kernels.dispatch` picks it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.dispatch import unsupported_call, unsupported_spec
from lvlm_attn.kernels.log_sum_exp import with_log_sum_exp
from lvlm_attn.kernels.readouts import Reading, Readout, read
from lvlm_attn.runtime.collected import CollectedEdits
from lvlm_attn.runtime.planned import Planned

if TYPE_CHECKING:
    from lvlm_attn.kernels.triton.path import PackedCall


def attend_fused(
    run_backend: Callable[[], tuple[Tensor, Tensor | None]],
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    *,
    backend: str,
) -> Tensor | None:
    """Computes a call with the kernels.

    Args:
        run_backend: runs the user's backend, where the kernels only compute the touched rows again.
        call: the innermost call.
        edits: what the interventions at this layer ask.
        attention: the attention call.
        backend: name of the user's backend.

    Returns:
        `(batch, queries, heads, head_dim)`, or None if it is all left to the backend and the torch path.
    """
    dispatch = call.kernels
    if not dispatch.may_use(attention.query):
        return None
    amplifications, redistributions = edits.amplifications, edits.redistributions
    reason = _unsupported_edits(edits, backend) or unsupported_call(attention)
    if reason is None and (call.has_own_mask or _is_unexpected(attention)):
        reason = "the model was given a mask of its own"
    reason = reason or _unsupported_mask(call)
    reason = reason or unsupported_spec(edits.visible, amplifications, redistributions)
    if reason is not None:
        dispatch.fall_back(reason)
        return None
    ours = _packed_call().of(
        attention,
        visibility=edits.visible,
        amplification=amplifications[0] if amplifications else None,
        redistribution=redistributions[0] if redistributions else None,
    )
    if not ours.visibility and not ours.has_edits and not edits.readouts:
        # No query of this call is one that the visibility restricts.
        return run_backend()[0]
    dispatch.count("triton")
    counts = edits.counts(attention.query.device)
    total: Tensor | None = None
    if call.plans is not None and edits.given is not None and not ours.visibility and not edits.readouts:
        call.plans[edits.edits[0].layer.index] = Planned.of(ours, edits, backend, call.plans.values())
    if ours.visibility or (ours.is_short and ours.has_edits):
        if ours.is_corrected:
            total = attention.query.new_empty(attention.query.shape[:3], dtype=torch.float32)
        output = ours.every_row(log_sum_exp=total, **counts)
    elif ours.is_corrected and backend == "sdpa":
        output, _, total = with_log_sum_exp(run_backend, attention)
    else:
        output, _ = run_backend()
    if ours.has_edits and not ours.is_short:
        touched = [spec.is_touched for spec in edits.specs if spec is not None]
        output = ours.edited_rows(output, call.rows_of_any(touched), log_sum_exp=total, **counts)
    for (layer, item), wanted in edits.readouts:
        item.read(layer, _read(ours, wanted))
    return output


@cache
def _packed_call() -> type[PackedCall]:
    """Imported where it is used, since it needs Triton."""
    from lvlm_attn.kernels.triton.path import PackedCall

    return PackedCall


def _read(ours: PackedCall, wanted: Readout) -> Reading:
    """Rows of weights by the kernels, other quantities chunk by chunk."""
    from lvlm_attn.kernels.triton.readout import is_readable

    if is_readable(wanted):
        return ours.read(wanted)
    amplification = ours.amplification
    return read(
        ours.call,
        wanted,
        visibility=ours.visibility,
        amplification=() if amplification is None else (amplification,),
        redistribution=ours.redistribution,
    )


def _unsupported_mask(call: Call) -> str | None:
    """Says why the model's own mask is not for the kernels, which know causality, windows and padding alone."""
    if call.attends_ahead:
        return "the model lets image tokens attend ahead"
    return "the model attends within chunks" if call.text_mask == "chunked" else None


def _unsupported_edits(edits: CollectedEdits, backend: str) -> str | None:
    if edits.is_free:
        title = next(item.title for _, item in edits.edits if item.overrides("edit_weights"))
        return f"{title} edits the whole weight matrix"
    if edits.extras or edits.gated:
        return "queries attend to keys from elsewhere"
    if backend == "eager":
        return "the eager backend returns weights, which have to be edited too; load the model with sdpa"
    return None


def _is_unexpected(attention: AttentionCall) -> bool:
    """Whether there is a dense mask where padding, window and cache give no cause for one: packed samples."""
    mask, geometry = attention.mask, attention.geometry
    if mask is None:
        return False
    is_plain = geometry.is_valid is None and geometry.window is None and geometry.start == 0
    return isinstance(mask, Tensor) and mask.dim() == 4 and is_plain and geometry.keys == geometry.queries
