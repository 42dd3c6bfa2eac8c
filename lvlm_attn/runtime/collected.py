"""What the interventions at a layer ask of one attention call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification, Redistribution, Reweighing
from lvlm_attn.kernels.visibility import Visibility
from lvlm_attn.runtime.active import Answers, Asked
from lvlm_attn.runtime.checked import Form, checked_answer
from lvlm_attn.runtime.row_counts import counts_of


class Edit(NamedTuple):
    """An intervention at the layer as it sees it."""

    layer: Layer
    item: Intervention


class CollectedEdits(NamedTuple):
    """What interventions ask of one attention call.

    Attributes:
        edits: all interventions at this layer, in order.
        visible: what may be attended to.
        extras: keys from elsewhere that share the softmax.
        gated: keys from elsewhere beside it.
        specs: for each edit how weights change, or None.
        readouts: what edits want to read off the weights.
        is_free: whether an edit changes the whole matrix of weights.
        given: what the sites said, see `Answers`; None where several wraps were asked.
    """

    edits: Sequence[Edit]
    visible: list[Visibility]
    extras: list[ExtraKeys]
    gated: list[ExtraKeys]
    specs: list[Reweighing | None]
    readouts: list[tuple[Edit, Readout]]
    is_free: bool
    given: Sequence[Any] | None = None

    @staticmethod
    def of(wraps: Sequence[Asked], answers: Sequence[Answers], form: Form) -> CollectedEdits:
        """What wraps ask at a layer, in order, from what their sites said.

        Args:
            wraps: the wraps.
            answers: what their sites said.
            form: what the answers have to fit.

        Raises:
            LvlmAttnError: if a site said what is no answer to it, or does not fit the call.
        """
        edits: list[Edit] = []
        specs: list[Reweighing | None] = []
        by_site: dict[str, list[tuple[Edit, Any]]] = {}
        for asked, (layers, given) in zip(wraps, answers):
            first = len(edits)
            edits += [Edit(layer, item) for layer, (item, _) in zip(layers, asked.editors)]
            specs += [None] * len(layers)
            for (site, place, _), said in zip(asked.questions, given):
                layer, item = edits[first + place]
                answer = checked_answer(site, item, layer, said, form)
                if site == "reweigh":
                    specs[first + place] = answer
                elif answer is not None:
                    by_site.setdefault(site, []).append((edits[first + place], answer))
        beside: list[ExtraKeys] = [extra for _, extra in by_site.get("extra_keys", ())]
        return CollectedEdits(
            edits=edits,
            visible=[item for _, item in by_site.get("visibility", ())],
            extras=[item for item in beside if item.gate is None],
            gated=[item for item in beside if item.gate is not None],
            specs=specs,
            readouts=by_site.get("readout", []),
            is_free=any(asked.is_free for asked in wraps),
            given=answers[0].given if len(answers) == 1 else None,
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
    def changes_weights(self) -> bool:
        """Whether scores or weights change, beside what may be attended to."""
        return self.is_free or any(spec is not None for spec in self.specs)

    @property
    def is_nothing(self) -> bool:
        """Whether the call stays plain attention."""
        lists = (self.visible, self.extras, self.gated, self.readouts)
        return not any(lists) and not self.changes_weights

    def counts(self, device: torch.device) -> dict[str, Tensor]:
        """The counts that kernels add to: `moved` of the redistribution, `amplified` of the amplification."""
        return {
            "moved" if isinstance(spec, Redistribution) else "amplified": counts_of(layer, device)
            for (layer, _), spec in zip(self.edits, self.specs)
            if spec is not None
        }
