"""Interventions that several tests use, each with one structured effect."""

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.kernels.spec import Amplification
from lvlm_attn.kernels.visibility import ALL, Visibility
from lvlm_attn.layout.prompt import Kind

VAR = {"rho": 0.1, "mass_floor": 0.05, "tau": 2.0}
"""Thresholds at which VAR acts on random weights."""


class Mutual(Intervention):
    """Patches read each other and the text behind them, weaker."""

    strength = 0.5

    def visibility(self, layer):
        group = (layer.layout.kind == Kind.PATCH).long()
        return Visibility(group, ((ALL, ALL), (ALL, ALL)), ((0, 0), (ALL, ALL)), strength=self.strength)


class Louder(Intervention):
    """Text looks at patches with higher scores."""

    def reweigh(self, layer):
        gain = 0.3 * (layer.layout.kind == Kind.PATCH)
        return Amplification(layer.call.text_queries(gain.device), gain=gain.float())
