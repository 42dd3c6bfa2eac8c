"""What a run is called where it is shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_MOST = 24


def full_name(maps: AttentionMaps) -> str:
    """All interventions with all that was set for the model; `"bare"` where there were none."""
    return "+".join(str(item) for item in maps.meta.get("interventions") or ()) or "bare"


def short_name(maps: AttentionMaps) -> str:
    """The interventions as they were asked for, where that is known; else in full where that is short, else by name."""
    if maps.meta.get("asked"):
        return str(maps.meta["asked"])
    whole = full_name(maps)
    names = [str(item).partition(":")[0] for item in maps.meta.get("interventions") or ()]
    return whole if len(whole) <= _MOST else "+".join(names)
