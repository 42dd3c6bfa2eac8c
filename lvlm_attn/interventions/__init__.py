"""What the author of an intervention imports; everything from this one place.

    from lvlm_attn.interventions import Amplification, Intervention

`Intervention` is the base class, `Layer` what its sites are told; `need_number` and its kin check parameters; the rest
is what sites are given and return.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lvlm_attn.errors import LvlmAttnError as LvlmAttnError
    from lvlm_attn.errors import UnsupportedError as UnsupportedError
    from lvlm_attn.families.target import Target as Target
    from lvlm_attn.interventions.base import Intervention as Intervention
    from lvlm_attn.interventions.base import Situation as Situation
    from lvlm_attn.interventions.checks import need_choice as need_choice
    from lvlm_attn.interventions.checks import need_flag as need_flag
    from lvlm_attn.interventions.checks import need_layers as need_layers
    from lvlm_attn.interventions.checks import need_number as need_number
    from lvlm_attn.interventions.checks import need_whole as need_whole
    from lvlm_attn.interventions.context import Call as Call
    from lvlm_attn.interventions.context import Layer as Layer
    from lvlm_attn.interventions.sites import in_prompts as in_prompts
    from lvlm_attn.kernels.extra import ExtraKeys as ExtraKeys
    from lvlm_attn.kernels.readouts import Reading as Reading
    from lvlm_attn.kernels.readouts import Readout as Readout
    from lvlm_attn.kernels.spec import Amplification as Amplification
    from lvlm_attn.kernels.spec import KeyClass as KeyClass
    from lvlm_attn.kernels.spec import Redistribution as Redistribution
    from lvlm_attn.kernels.visibility import ALL as ALL
    from lvlm_attn.kernels.visibility import Visibility as Visibility
    from lvlm_attn.layout.grids import Block as Block
    from lvlm_attn.layout.grids import ImageGrid as ImageGrid
    from lvlm_attn.layout.grids import Kind as Kind
    from lvlm_attn.layout.prompt import PromptLayout as PromptLayout
    from lvlm_attn.prompts.request import Request as Request

_HOMES = {
    "ALL": "kernels.visibility",
    "Amplification": "kernels.spec",
    "Block": "layout.grids",
    "Call": "interventions.context",
    "ExtraKeys": "kernels.extra",
    "ImageGrid": "layout.grids",
    "Intervention": "interventions.base",
    "KeyClass": "kernels.spec",
    "Kind": "layout.grids",
    "Layer": "interventions.context",
    "LvlmAttnError": "errors",
    "PromptLayout": "layout.prompt",
    "Reading": "kernels.readouts",
    "Readout": "kernels.readouts",
    "Redistribution": "kernels.spec",
    "Request": "prompts.request",
    "Situation": "interventions.base",
    "Target": "families.target",
    "UnsupportedError": "errors",
    "Visibility": "kernels.visibility",
    "in_prompts": "interventions.sites",
    "need_choice": "interventions.checks",
    "need_flag": "interventions.checks",
    "need_layers": "interventions.checks",
    "need_number": "interventions.checks",
    "need_whole": "interventions.checks",
}
"""Where each name is defined; the imports above repeat the table for type checkers."""

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lvlm_attn.interventions' has no attribute {name!r}")
    return getattr(import_module(f"lvlm_attn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
