"""`parse`: interventions from text, for the command line, plugins and result files."""

from __future__ import annotations

from lvlm_attn.hooks.catalogue import methods
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.grammar import parse_interventions


def parse(text: str) -> tuple[Intervention, ...]:
    """Reads interventions from text; `str(intervention)` is its inverse.

    Args:
        text: interventions joined by `+`, each a name with optional `key=value` pairs after a colon. Layers
            are numbers, ranges (`18..31`) or slices (`2:-1`); lists stand in brackets. `none` is no
            intervention.

    Returns:
        The interventions in order; `la.wrap(model, *la.parse(text))` puts them on a model.

    Raises:
        LvlmAttnError: for an unknown name or parameter, with the closest one, or a value that does not fit.

    Example:
        >>> [str(item) for item in parse("var:rho=0.8 + vhr:alpha=3,layers=[1,18..31]")]
        ['var:rho=0.8', 'vhr:alpha=3.0,layers=[1,18..31]']
    """
    return parse_interventions(text, methods())
