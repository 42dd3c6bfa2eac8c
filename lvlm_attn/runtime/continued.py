"""Edits on the torch path while an answer is decoded: what stays the same from token to token is decided once.

As in `runtime.planned`; here a layer whose weight is moved between few keys goes on by the operator behind SDPA and the
correction alone. Nothing of keys and values is kept: a cache may be cut, reordered or written to between two tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall, Inputs
from lvlm_attn.kernels.log_sum_exp import straight
from lvlm_attn.kernels.spec import Redistribution
from lvlm_attn.runtime.active import Answers
from lvlm_attn.runtime.collected import CollectedEdits
from lvlm_attn.runtime.corrected import attends_to_all, corrected_step, is_step, may_correct
from lvlm_attn.runtime.planned import Kept, Plan
from lvlm_attn.runtime.row_counts import count_judged
from lvlm_attn.runtime.transformers_private import is_plain_sdpa


@dataclass(frozen=True, eq=False)
class Continued(Plan):
    """How a layer's redistribution goes on from one generated token to the next.

    Attributes:
        place: of the intervention that moves weight.
        move: what to move.
    """

    place: int
    move: Redistribution

    @staticmethod
    def plan(
        call: Call,
        edits: CollectedEdits,
        attention: AttentionCall,
        backend: str,
        output: Tensor,
        log_sum_exp: Tensor | None,
    ) -> None:
        """Keeps a plan among `Call.plans` for the tokens after this one, where it gives the same bits.

        Args:
            call: the call, of one generated token.
            edits: its edits.
            attention: the attention call.
            backend: name of the user's backend.
            output: what the backend made.
            log_sum_exp: `(batch, heads, 1)`, or None.
        """
        if (
            call.plans is None
            or edits.given is None
            or log_sum_exp is None
            or len(edits.redistributions) != 1
        ):
            return
        index, move = edits.edits[0].layer.index, edits.redistributions[0]
        if index in call.plans or edits.amplifications or edits.gated or edits.readouts:
            return
        if not (may_correct(edits, attention) and is_step(edits, attention, move, output)):
            return
        if call.kernels.may_use(attention.query) or not is_plain_sdpa(backend):
            return
        found = straight(attention, attention.kwargs.get("scaling"))
        is_same = found is not None and torch.equal(found[0], output) and torch.equal(found[1], log_sum_exp)
        kept = Kept.of(attention, edits.given, backend)
        plan = Continued(kept, attention.scaling, edits.specs.index(move), move)
        call.plans[index] = plan if is_same else None  # what differs is not computed twice at every token

    def go_on(
        self, call: Call, answers: Answers, inputs: Inputs, mask: Any, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Calls the operator and corrects. A layer that needs all keys once is not planned again."""
        query, key, value, scaling = inputs
        geometry = call.geometry(key.shape[2], None)
        if not (attends_to_all(geometry, mask) and is_plain_sdpa(self.kept.backend)):
            return None
        attention = AttentionCall(query, key, value, geometry, scaling, mask, memo=call.memo)
        found = straight(attention, kwargs.get("scaling"))
        if found is None:
            return None
        output, total = found
        layer = answers.layers[self.place]
        judged = corrected_step(output, total, attention, self.move)
        if judged is None:
            if call.plans is not None:
                call.plans[layer.index] = None
            return None
        call.kernels.count("torch")
        count_judged(layer, judged, self.move.is_touched, query.shape[1])
        return output
