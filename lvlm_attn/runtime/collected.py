"""What the interventions at a layer ask of one attention call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification, Redistribution, Reweighing
from lvlm_attn.kernels.visibility import Visibility


class Edit(NamedTuple):
    """An intervention at the layer as it sees it."""

    layer: Layer
    item: Intervention


class CollectedEdits(NamedTuple):
    """What interventions ask of one attention call; every site is called once.

    Attributes:
        edits: all interventions at this layer, in order.
        visible: what may be attended to.
        extras: keys from elsewhere that share the softmax.
        gated: keys from elsewhere beside it.
        specs: for each edit how weights change, or None.
        readouts: what edits want to read off the weights.
        is_free: whether an edit changes the whole matrix of weights.
    """

    edits: Sequence[Edit]
    visible: list[Visibility]
    extras: list[ExtraKeys]
    gated: list[ExtraKeys]
    specs: list[Reweighing | None]
    readouts: list[tuple[Edit, Readout]]
    is_free: bool

    @staticmethod
    def of(edits: Sequence[Edit]) -> CollectedEdits:
        """Calls the sites of all edits, in order."""
        seen = [item.visibility(layer) for layer, item in edits if item.overrides("visibility")]
        beside = [item.extra_keys(layer) for layer, item in edits if item.overrides("extra_keys")]
        looks = [(edit, edit.item.readout(edit.layer)) for edit in edits if edit.item.overrides("readout")]
        return CollectedEdits(
            edits=edits,
            visible=[item for item in seen if item is not None],
            extras=[item for item in beside if item is not None and item.gate is None],
            gated=[item for item in beside if item is not None and item.gate is not None],
            specs=[item.reweigh(layer) for layer, item in edits],
            readouts=[(edit, wanted) for edit, wanted in looks if wanted is not None],
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
    def changes_weights(self) -> bool:
        """Whether scores or weights change, beside what may be attended to."""
        return self.is_free or any(spec is not None for spec in self.specs)

    @property
    def is_nothing(self) -> bool:
        """Whether the call stays plain attention."""
        lists = (self.visible, self.extras, self.gated, self.readouts)
        return not any(lists) and not self.changes_weights
