"""Choosing decoder layers: by number, by list, by range, or by a slice counted from either end."""

from __future__ import annotations

import re
from collections.abc import Iterable

from lvlm_attn.errors import LvlmAttnError

Layers = int | str | Iterable[int] | None

_RANGE = re.compile(r"^(\d+)\.\.(\d+)$")
_SLICE = re.compile(r"^(-?\d*):(-?\d*)$")


def select_layers(layers: Layers, count: int, method: str) -> tuple[int, ...]:
    """Resolves a choice of layers against a model.

    Args:
        layers: None for all; a number; several numbers; or text: `"5"`, `"18..31"` (both ends belong to it),
            `"2:-1"` (a slice as Python counts it), or a comma-separated mix of these, in brackets or not.
        count: how many layers the model has.
        method: who asks, for the message.

    Returns:
        Sorted layer indices.

    Raises:
        LvlmAttnError: if a layer is outside the model or the text cannot be read.

    Example:
        >>> select_layers("[1,4..6,-1:]", 10, "VHR")
        (1, 4, 5, 6, 9)
    """
    if layers is None:
        return tuple(range(count))
    items: Iterable[int | str] = (
        layers.strip("[] ").split(",") if isinstance(layers, str) else _listed(layers)
    )
    chosen: set[int] = set()
    for item in items:
        found = _expand(item, count) if isinstance(item, str) else [int(item)]
        if found is None:
            raise LvlmAttnError(
                f"{method}: layers={layers!r} cannot be read at {item!r}; write a number, a range like 18..31, "
                f"or a slice like 2:-1."
            )
        outside = [layer for layer in found if not 0 <= layer < count]
        if outside:
            raise LvlmAttnError(
                f"{method}: layer {outside[0]} is out of range; this model has {count} decoder layers, "
                f"numbered 0 to {count - 1}."
            )
        chosen.update(found)
    if not chosen:
        raise LvlmAttnError(
            f"{method}: layers={layers!r} chooses none of the {count} decoder layers; choose at least one or "
            f"leave the parameter out."
        )
    return tuple(sorted(chosen))


def format_layers(layers: Layers) -> str:
    """Writes a choice of layers as text that `select_layers` reads.

    Example:
        >>> format_layers((1, 18, 19, 20))
        '[1,18..20]'
    """
    if isinstance(layers, str):
        return f"[{layers}]" if "," in layers and not layers.startswith("[") else layers
    numbers = sorted(set(_listed(layers)))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return parts[0] if len(parts) == 1 else "[" + ",".join(parts) + "]"


def canonical_layers(layers: Layers) -> Layers:
    """Brings equal choices to one form: a number, a tuple of numbers, or text as given."""
    if layers is None or isinstance(layers, int):
        return layers
    if isinstance(layers, str):
        text = layers.strip("[] ")
        parts = text.split(",")
        if all(part.strip().isdigit() or _RANGE.match(part.strip()) for part in parts):
            return tuple(sorted({layer for part in parts for layer in _expand(part, 0) or []}))
        return text
    return tuple(sorted(set(_listed(layers))))


def _listed(layers: Layers) -> list[int]:
    if layers is None or isinstance(layers, str):
        return []
    return [layers] if isinstance(layers, int) else [int(layer) for layer in layers]


def _expand(text: str, count: int) -> list[int] | None:
    text = text.strip()
    if text.isdigit():
        return [int(text)]
    if match := _RANGE.match(text):
        return list(range(int(match[1]), int(match[2]) + 1))
    if match := _SLICE.match(text):
        begin, end = (int(part) if part else None for part in match.groups())
        return list(range(count))[begin:end]
    return None
