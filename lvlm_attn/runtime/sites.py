"""Which interventions act at which layer, and which layers they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.base import ATTENTION_SITES, LAYER_SITES, Intervention, Target
from lvlm_attn.interventions.layers import format_layers

Acting = list[tuple[int, Intervention]]

_OF_ANY_LAYER = ("observe", "frozen")
"""Sites that need no softmax attention."""


@dataclass(frozen=True)
class Sites:
    """Interventions by site and layer.

    Attributes:
        by_layer: for each site of a layer, and for `"attention"`, the interventions at each layer, as (place in the
            wrap, intervention).
        skipped: for an intervention by its place, the layers without softmax attention that it leaves out.
    """

    by_layer: dict[str, dict[int, Acting]]
    skipped: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(interventions: Sequence[Intervention], target: Target) -> Sites:
        """The sites of some interventions in a model.

        Raises:
            LvlmAttnError: if an intervention has no layer to act at, because none that it chose has softmax
                attention.
        """
        found = Sites({site: {} for site in (*LAYER_SITES, "attention")})
        for place, item in enumerate(interventions):
            for site, layers in found.by_layer.items():
                for name in ATTENTION_SITES if site == "attention" else (site,):
                    if item.overrides(name):
                        for layer in found._acting(place, item, name, target):
                            entry = (place, item)
                            if entry not in layers.setdefault(layer, []):
                                layers[layer].append(entry)
        found._refuse_idle(interventions, target)
        return found

    def _acting(self, place: int, item: Intervention, site: str, target: Target) -> list[int]:
        asked = list(item.layers_at(site, target))
        lacking = () if site in _OF_ANY_LAYER else target.skipped_layers
        left_out = {layer for layer in asked if layer in lacking}
        if left_out:
            self.skipped[place] = tuple(sorted({*self.skipped.get(place, ()), *left_out}))
        return [layer for layer in asked if layer not in left_out]

    def _refuse_idle(self, interventions: Sequence[Intervention], target: Target) -> None:
        acting = {
            place for layers in self.by_layer.values() for items in layers.values() for place, _ in items
        }
        for place, layers in self.skipped.items():
            if place not in acting:
                raise LvlmAttnError(
                    f"{interventions[place].title}: none of the layers {format_layers(layers)} has softmax "
                    f"attention; this model has it in layers {format_layers(target.parts.softmax_layers)}."
                )
