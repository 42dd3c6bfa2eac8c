"""Which interventions act at which layer, and which layers they leave out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.layers import format_layers
from lvlm_attn.interventions.sites import ATTENTION_SITES, LAYER_SITES
from lvlm_attn.runtime.active import Editor

_OF_ANY_LAYER = ("observe", "frozen")
"""Sites that need no softmax attention."""


@dataclass(frozen=True)
class Sites:
    """Interventions by site and layer.

    Attributes:
        by_layer: for each site of a layer, and for `"attention"`, the interventions at each layer, in order.
        skipped: for an intervention by its place, the layers without softmax attention that it leaves out.
    """

    by_layer: dict[str, dict[int, list[Editor]]]
    skipped: dict[int, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of(editors: Sequence[Editor], target: Target) -> Sites:
        """The sites of some interventions in a model.

        Raises:
            LvlmAttnError: if an intervention has no layer to act at, because none that it chose has softmax
                attention.
        """
        found = Sites({site: {} for site in (*LAYER_SITES, "attention")})
        for place, editor in enumerate(editors):
            acts = False
            for site, layers in found.by_layer.items():
                names = ATTENTION_SITES if site == "attention" else (site,)
                chosen = {
                    layer
                    for name in names
                    if editor.item.overrides(name)
                    for layer in found._acting(place, editor.item, name, target)
                }
                acts = acts or bool(chosen)
                for layer in sorted(chosen):
                    layers.setdefault(layer, []).append(editor)
            if place in found.skipped and not acts:
                raise LvlmAttnError(
                    f"{editor.item.title}: none of the layers {format_layers(found.skipped[place])} has softmax "
                    f"attention; this model has it in layers {format_layers(target.parts.softmax_layers)}."
                )
        return found

    def _acting(self, place: int, item: Intervention, site: str, target: Target) -> list[int]:
        asked = list(item.layers_at(site, target))
        lacking = () if site in _OF_ANY_LAYER else target.skipped_layers
        left_out = {layer for layer in asked if layer in lacking}
        if left_out:
            self.skipped[place] = tuple(sorted({*self.skipped.get(place, ()), *left_out}))
        return [layer for layer in asked if layer not in left_out]
