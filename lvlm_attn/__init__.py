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
    from lvlm_attn.errors import LvlmAttnError as LvlmAttnError
    from lvlm_attn.errors import UnsupportedError as UnsupportedError
    from lvlm_attn.evals.benchmarks import load_benchmark as load_benchmark
    from lvlm_attn.evals.chair.benchmark import Chair as Chair
    from lvlm_attn.evals.compare import compare as compare
    from lvlm_attn.evals.controls.controls import evaluate_with_controls as evaluate_with_controls
    from lvlm_attn.evals.core.evaluate import evaluate as evaluate
    from lvlm_attn.evals.pope.benchmark import Pope as Pope
    from lvlm_attn.evals.sweep.sweep import sweep as sweep
    from lvlm_attn.families import models as models
    from lvlm_attn.families import register_family as register_family
    from lvlm_attn.families.family import Family as Family
    from lvlm_attn.hooks.agla import AGLA as AGLA
    from lvlm_attn.hooks.carve import CARVE as CARVE
    from lvlm_attn.hooks.carve_attention import CARVEAttention as CARVEAttention
    from lvlm_attn.hooks.catalogue import methods as methods
    from lvlm_attn.hooks.catalogue import register as register
    from lvlm_attn.hooks.cmai import CMAI as CMAI
    from lvlm_attn.hooks.crosslmm.method import CrossLMM as CrossLMM
    from lvlm_attn.hooks.delayed import Delayed as Delayed
    from lvlm_attn.hooks.dola import DoLa as DoLa
    from lvlm_attn.hooks.frozen_visual import FrozenVisual as FrozenVisual
    from lvlm_attn.hooks.hollow import Hollow as Hollow
    from lvlm_attn.hooks.icd import ICD as ICD
    from lvlm_attn.hooks.mma.method import MMA as MMA
    from lvlm_attn.hooks.neighborhood import Neighborhood as Neighborhood
    from lvlm_attn.hooks.opera.method import OPERA as OPERA
    from lvlm_attn.hooks.pai import PAI as PAI
    from lvlm_attn.hooks.paint import PAINT as PAINT
    from lvlm_attn.hooks.parsing import parse as parse
    from lvlm_attn.hooks.power import Power as Power
    from lvlm_attn.hooks.record import record as record
    from lvlm_attn.hooks.var import VAR as VAR
    from lvlm_attn.hooks.vcd import VCD as VCD
    from lvlm_attn.hooks.vhr import VHR as VHR
    from lvlm_attn.hooks.visual_self import VisualSelf as VisualSelf
    from lvlm_attn.hooks.vmtc import VMTC as VMTC
    from lvlm_attn.interventions.base import Intervention as Intervention
    from lvlm_attn.interventions.context import Layer as Layer
    from lvlm_attn.layout.grids import Kind as Kind
    from lvlm_attn.layout.prompt import PromptLayout as PromptLayout
    from lvlm_attn.loading import load as load
    from lvlm_attn.maps.attention_maps import AttentionMaps as AttentionMaps
    from lvlm_attn.measures.diagnostics import Divergence as Divergence
    from lvlm_attn.measures.diagnostics import find_sinks as find_sinks
    from lvlm_attn.measures.diagnostics import vhd as vhd
    from lvlm_attn.measures.sinks import SinkDims as SinkDims
    from lvlm_attn.wrapping import Wrapped as Wrapped
    from lvlm_attn.wrapping import wrap as wrap

_HOMES = {
    "AGLA": "hooks.agla",
    "AttentionMaps": "maps.attention_maps",
    "CARVE": "hooks.carve",
    "Chair": "evals.chair.benchmark",
    "CARVEAttention": "hooks.carve_attention",
    "CMAI": "hooks.cmai",
    "CrossLMM": "hooks.crosslmm.method",
    "Delayed": "hooks.delayed",
    "Divergence": "measures.diagnostics",
    "DoLa": "hooks.dola",
    "Family": "families.family",
    "FrozenVisual": "hooks.frozen_visual",
    "Hollow": "hooks.hollow",
    "ICD": "hooks.icd",
    "Intervention": "interventions.base",
    "Kind": "layout.grids",
    "Layer": "interventions.context",
    "LvlmAttnError": "errors",
    "MMA": "hooks.mma.method",
    "Neighborhood": "hooks.neighborhood",
    "OPERA": "hooks.opera.method",
    "PAI": "hooks.pai",
    "PAINT": "hooks.paint",
    "Pope": "evals.pope.benchmark",
    "Power": "hooks.power",
    "PromptLayout": "layout.prompt",
    "SinkDims": "measures.sinks",
    "UnsupportedError": "errors",
    "VAR": "hooks.var",
    "VCD": "hooks.vcd",
    "VHR": "hooks.vhr",
    "VMTC": "hooks.vmtc",
    "VisualSelf": "hooks.visual_self",
    "Wrapped": "wrapping",
    "compare": "evals.compare",
    "evaluate": "evals.core.evaluate",
    "evaluate_with_controls": "evals.controls.controls",
    "find_sinks": "measures.diagnostics",
    "load": "loading",
    "load_benchmark": "evals.benchmarks",
    "methods": "hooks.catalogue",
    "models": "families",
    "parse": "hooks.parsing",
    "record": "hooks.record",
    "register": "hooks.catalogue",
    "register_family": "families",
    "sweep": "evals.sweep.sweep",
    "vhd": "measures.diagnostics",
    "wrap": "wrapping",
}
"""Where each public name is defined; the one table of them, which the imports above repeat for type checkers."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lvlm_attn' has no attribute {name!r}")
    # Names in transformers' registries are there from the first use on, not from the first wrap.
    if not _HOMES[name].startswith("evals."):
        import_module("lvlm_attn.runtime.registry")
    return getattr(import_module(f"lvlm_attn.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
