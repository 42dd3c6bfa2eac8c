"""Which methods there are, by the name that text forms use."""

from __future__ import annotations

import re
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.hooks.agla import AGLA
from lvlm_attn.hooks.carve import CARVE
from lvlm_attn.hooks.carve_attention import CARVEAttention
from lvlm_attn.hooks.cmai import CMAI
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from lvlm_attn.hooks.delayed import Delayed
from lvlm_attn.hooks.dola import DoLa
from lvlm_attn.hooks.entry_points import load_entry_points
from lvlm_attn.hooks.frozen_visual import FrozenVisual
from lvlm_attn.hooks.hollow import Hollow
from lvlm_attn.hooks.icd import ICD
from lvlm_attn.hooks.mma.method import MMA
from lvlm_attn.hooks.neighborhood import Neighborhood
from lvlm_attn.hooks.opera.method import OPERA
from lvlm_attn.hooks.pai import PAI
from lvlm_attn.hooks.paint import PAINT
from lvlm_attn.hooks.power import Power
from lvlm_attn.hooks.var import VAR
from lvlm_attn.hooks.vcd import VCD
from lvlm_attn.hooks.vhr import VHR
from lvlm_attn.hooks.visual_self import VisualSelf
from lvlm_attn.hooks.vmtc import VMTC
from lvlm_attn.interventions.base import Intervention

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_METHODS: dict[str, type[Intervention]] = {
    kind.name: kind
    for kind in (
        VAR,
        VHR,
        CARVE,
        CARVEAttention,
        AGLA,
        VCD,
        ICD,
        PAI,
        PAINT,
        DoLa,
        OPERA,
        MMA,
        CrossLMM,
        VisualSelf,
        FrozenVisual,
        Hollow,
        Delayed,
        Neighborhood,
        Power,
        VMTC,
        CMAI,
    )
}


def methods() -> dict[str, type[Intervention]]:
    """The interventions by the name that `lvlm_attn.parse` and the command line use.

    Those of other packages, found by the entry-point group `lvlm_attn.methods`, are among them.

    Example:
        >>> methods()["var"].__name__
        'VAR'
    """
    load_entry_points(register)
    return dict(_METHODS)


def register(kind: type[Intervention]) -> type[Intervention]:
    """Makes an intervention known to `parse`, `methods` and the command line; usable as a decorator.

    Args:
        kind: a subclass of `Intervention` with a `name`.

    Raises:
        LvlmAttnError: if it is no such class, or its name is missing, taken by another class, or none that `parse`
            would read.
    """
    given: Any = kind
    if isinstance(given, Intervention):
        raise LvlmAttnError(
            f"register takes a class, and got an object of {given.title}; pass the class {given.title} itself."
        )
    if not isinstance(given, type) or not issubclass(given, Intervention):
        raise LvlmAttnError(
            f"register takes a class, and got {shown(given)}; derive the class of your method from Intervention."
        )
    if not kind.name:
        raise LvlmAttnError(
            f"{kind.__name__} has no name; set `name: ClassVar[str]` to a short lower-case one."
        )
    if not _NAME.fullmatch(kind.name):
        raise LvlmAttnError(
            f"The name {shown(kind.name)} of {kind.__name__} cannot be written on the command line; use lower-case "
            f"letters, digits and underscores."
        )
    if _METHODS.get(kind.name, kind) is not kind:
        raise LvlmAttnError(
            f"The name {kind.name!r} is taken by {_METHODS[kind.name].__name__}; choose another for {kind.__name__}."
        )
    _METHODS[kind.name] = kind
    return kind
