"""lvlm_attn: change how a vision-language model pays attention while it generates.

    import lvlm_attn as la

    model, processor = la.load("toy")
    with la.wrap(model, la.VAR(rho=0.5), la.VHR(alpha=2.0), processor=processor) as lvlm:
        print(lvlm.generate(images=[image], prompts=["Is there a dog in the image?"], max_new_tokens=8))
        print(lvlm.report())

Names are imported on first use, so that `import lvlm_attn` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lvlm_attn._version import __version__

if TYPE_CHECKING:
    from lvlm_attn.diagnostics import Divergence, find_sinks, vhd
    from lvlm_attn.errors import LvlmAttnError, UnsupportedError
    from lvlm_attn.hooks import methods, register
    from lvlm_attn.hooks.agla import AGLA
    from lvlm_attn.hooks.carve import CARVE
    from lvlm_attn.hooks.carve_attention import CARVEAttention
    from lvlm_attn.hooks.cmai import CMAI
    from lvlm_attn.hooks.crosslmm import CrossLMM
    from lvlm_attn.hooks.delayed import Delayed
    from lvlm_attn.hooks.dola import DoLa
    from lvlm_attn.hooks.frozen_visual import FrozenVisual
    from lvlm_attn.hooks.hollow import Hollow
    from lvlm_attn.hooks.icd import ICD
    from lvlm_attn.hooks.mma import MMA
    from lvlm_attn.hooks.neighborhood import Neighborhood
    from lvlm_attn.hooks.opera import OPERA
    from lvlm_attn.hooks.pai import PAI
    from lvlm_attn.hooks.paint import PAINT
    from lvlm_attn.hooks.power import Power
    from lvlm_attn.hooks.var import VAR
    from lvlm_attn.hooks.vcd import VCD
    from lvlm_attn.hooks.vhr import VHR
    from lvlm_attn.hooks.visual_self import VisualSelf
    from lvlm_attn.hooks.vmtc import VMTC
    from lvlm_attn.intervention import Intervention, Layer
    from lvlm_attn.layout import Kind, PromptLayout
    from lvlm_attn.loading import load
    from lvlm_attn.models import Family, models, register_family
    from lvlm_attn.parsing import parse
    from lvlm_attn.sinks import SinkDims
    from lvlm_attn.wrapping import Wrapped, wrap

_HOMES = {
    "AGLA": "hooks.agla",
    "CARVE": "hooks.carve",
    "CARVEAttention": "hooks.carve_attention",
    "CMAI": "hooks.cmai",
    "CrossLMM": "hooks.crosslmm",
    "Delayed": "hooks.delayed",
    "Divergence": "diagnostics",
    "DoLa": "hooks.dola",
    "Family": "models",
    "FrozenVisual": "hooks.frozen_visual",
    "Hollow": "hooks.hollow",
    "ICD": "hooks.icd",
    "Intervention": "intervention",
    "Kind": "layout",
    "Layer": "intervention",
    "LvlmAttnError": "errors",
    "MMA": "hooks.mma",
    "Neighborhood": "hooks.neighborhood",
    "OPERA": "hooks.opera",
    "PAI": "hooks.pai",
    "PAINT": "hooks.paint",
    "Power": "hooks.power",
    "PromptLayout": "layout",
    "SinkDims": "sinks",
    "UnsupportedError": "errors",
    "VAR": "hooks.var",
    "VCD": "hooks.vcd",
    "VHR": "hooks.vhr",
    "VMTC": "hooks.vmtc",
    "VisualSelf": "hooks.visual_self",
    "Wrapped": "wrapping",
    "find_sinks": "diagnostics",
    "load": "loading",
    "methods": "hooks",
    "models": "models",
    "parse": "parsing",
    "register": "hooks",
    "register_family": "models",
    "vhd": "diagnostics",
    "wrap": "wrapping",
}

__all__ = [
    "AGLA",
    "CARVE",
    "CMAI",
    "ICD",
    "MMA",
    "OPERA",
    "PAI",
    "PAINT",
    "VAR",
    "VCD",
    "VHR",
    "VMTC",
    "CARVEAttention",
    "CrossLMM",
    "Delayed",
    "Divergence",
    "DoLa",
    "Family",
    "FrozenVisual",
    "Hollow",
    "Intervention",
    "Kind",
    "Layer",
    "LvlmAttnError",
    "Neighborhood",
    "Power",
    "PromptLayout",
    "SinkDims",
    "UnsupportedError",
    "VisualSelf",
    "Wrapped",
    "__version__",
    "find_sinks",
    "load",
    "methods",
    "models",
    "parse",
    "register",
    "register_family",
    "vhd",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lvlm_attn' has no attribute {name!r}")
    # Names in transformers' registries are there from the first use on, not from the first wrap.
    import_module("lvlm_attn.registry")
    return getattr(import_module(f"lvlm_attn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
