"""Interventions written as text; `interventions.grammar` reads it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.layers import format_layers

_NEEDS_QUOTES = re.compile(r"[,+=\[\]'\"]|^\s|\s$|^[+-]?\.?\d")
"""Text that would be read as something else: with separators, brackets or quotes, or like a number."""


def written(name: str, values: Mapping[str, Any]) -> str:
    """An intervention with these parameters, as `lvlm_attn.parse` reads it.

    Example:
        >>> written("vhr", {"alpha": 3.0, "layers": (1, 18, 19)})
        'vhr:alpha=3.0,layers=[1,18..19]'
    """
    parts = [f"{key}={format_value(key, value)}" for key, value in values.items()]
    return f"{name}:{','.join(parts)}" if parts else name


def format_value(name: str, value: Any) -> str:
    """Writes the value of a parameter the way `lvlm_attn.parse` reads it.

    Raises:
        LvlmAttnError: naming the parameter, if its value has no written form.
    """
    if name == "layers" and value is not None:
        return format_layers(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(format_value("", item) for item in value) + "]"
    if isinstance(value, str):
        is_word = value.lower() in ("", "none", "null", "true", "false")
        return '"' + value.replace('"', '""') + '"' if is_word or _NEEDS_QUOTES.search(value) else value
    if isinstance(value, (int, float)):
        return str(value)
    raise LvlmAttnError(
        f"Parameter {name!r} holds a {type(value).__name__}, which has no written form; give it in code only."
    )
