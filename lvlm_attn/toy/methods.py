"""Every method as it was tried on the toy: the settings to choose from on dev scenes, and what was chosen."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

#: What was chosen, by the name of the method; written by ``python -m benchmarks.methods``.
CHOSEN = Path(__file__).with_name("methods.json")

#: Settings of each method as on the command line, the defaults first; a method with one setting has nothing to choose.
GRID = MappingProxyType(
    {
        "VAR": ("var", "var:removed_fraction=0.8", "var:rho=0.3,removed_fraction=0.8"),
        "VHR": ("vhr", "vhr:alpha=1.3", "vhr:alpha=1.6"),
        "VAR+VHR": ("var+vhr", "var:removed_fraction=0.8+vhr:alpha=1.3"),
        "PAI": ("pai", "pai:gamma=1.5", "pai:gamma=2.0", "pai:alpha=0.5,gamma=2.0"),
        "PAI, attention only": ("pai:gamma=1.0", "pai:alpha=0.5,gamma=1.0"),
        "PAINT": ("paint", "paint:alpha=0.3,beta=0.2"),
        "VCD": ("vcd", "vcd:alpha=0.5,noise_step=900", "vcd:noise_step=900", "vcd:noise_step=999"),
        "ICD": ("icd", "icd:lam=0.5"),
        "AGLA (self)": ("agla:matcher=self", "agla:alpha=1.0,matcher=self"),
        "CARVE": (
            "carve",
            "carve:p=0.6",
            "carve:images=original_plus_refined",
            "carve:layers=[3]",
            "carve:images=original_plus_refined,layers=[3]",
        ),
        "DoLa": ("dola", "dola:layers=high"),
        "OPERA": ("opera",),
        "MMA": ("mma",),
        "VisualSelf": ("visual_self",),
        "FrozenVisual": ("frozen_visual",),
        "Hollow": ("hollow",),
        "Delayed": ("delayed",),
        "Neighborhood": ("neighborhood",),
        "Power": ("power",),
        "VMTC": ("vmtc",),
        "CMAI": ("cmai",),
        "CARVEAttention": ("carve_attention",),
        "CrossLMM, 9 tokens": ("crosslmm:grid=[3,3],w=0.0",),
        "CrossLMM, reuse S1": ("crosslmm:grid=[3,3],source=S1",),
        "CrossLMM, adapter": ("crosslmm:weights=toy",),
    }
)

#: Goes the way of AGLA's fusion with the same view twice: must change no greedy answer.
IDENTITY = "agla:matcher=self,control=true"


def chosen() -> dict[str, str]:
    """Returns each method's setting: the one chosen on dev scenes, or its first.

    Example:
        >>> from lvlm_attn.toy.methods import chosen
        >>> chosen()["OPERA"]
        'opera'
    """
    kept = json.loads(CHOSEN.read_text())["chosen"] if CHOSEN.is_file() else {}
    return {name: kept.get(name, points[0]) for name, points in GRID.items()}
