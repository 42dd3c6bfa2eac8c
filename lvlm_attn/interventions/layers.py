"""Choosing decoder layers: by number, by list, by range, or by a slice counted from either end."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence

from lvlm_attn.errors import LvlmAttnError, closest, shown

Layers = int | str | Iterable[int] | None

DEEPEST = 9_999
"""Largest layer number that is read; no model is that deep."""

_MOST_TEXT = 60_000
_NUMBER = re.compile(r"[0-9]{1,4}")
_RANGE = re.compile(r"([0-9]{1,4})\.\.([0-9]{1,4})")
_SLICE = re.compile(r"(-?[0-9]{1,4})?:(-?[0-9]{1,4})?")


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
    items = _items(layers) if isinstance(layers, str) else _listed(layers, method)
    chosen: set[int] = set()
    for item in items:
        found = _expand(item, count, layers, method) if isinstance(item, str) else [item]
        outside = [layer for layer in found if not 0 <= layer < count]
        if outside:
            raise LvlmAttnError(
                f"{method}: layer {outside[0]} is out of range; this model has {count} decoder layers, "
                f"numbered 0 to {count - 1}."
            )
        chosen.update(found)
    if not chosen:
        raise LvlmAttnError(
            f"{method}: layers={shown(layers)} chooses none of the {count} decoder layers; choose at least one or "
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
    numbers = sorted(set(_listed(layers, "layers")))
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    parts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return parts[0] if len(parts) == 1 else "[" + ",".join(parts) + "]"


def canonical_layers(layers: Layers, method: str, words: Sequence[str] = ()) -> Layers:
    """Brings equal choices to one form: a tuple of numbers, or text where slices depend on the model.

    Args:
        layers: see `select_layers`.
        method: who asks, for the message.
        words: names that are taken in place of layers.

    Raises:
        LvlmAttnError: if the choice cannot be read, or chooses nothing whatever the model.

    Example:
        >>> canonical_layers("[4..6,1]", "VHR"), canonical_layers(" [ 2:-1 ] ", "VHR")
        ((1, 4, 5, 6), '2:-1')
    """
    if layers is None or (isinstance(layers, str) and layers in words):
        return layers
    if isinstance(layers, str):
        if words and layers.strip().isalpha():
            raise LvlmAttnError(
                f"{method}: layers={shown(layers)} is not known.{closest(layers, words)} "
                f"Write {' or '.join(words)}, or layer numbers."
            )
        items = _items(layers)
        if any(":" in item for item in items):
            for item in items:
                _expand(item, 0, layers, method)
            return ",".join(items)
        numbers = [number for item in items for number in _expand(item, 0, layers, method)]
    else:
        numbers = _listed(layers, method)
    if not numbers:
        raise LvlmAttnError(
            f"{method}: layers={shown(layers)} chooses none; choose at least one or leave it out."
        )
    return tuple(sorted(set(numbers)))


def _items(text: str) -> list[str]:
    """The parts of a text; one that cannot be read if it is too long to be a choice."""
    return [item.strip() for item in text.strip("[] ").split(",")] if len(text) <= _MOST_TEXT else [text]


def _listed(layers: Layers, method: str) -> list[int]:
    """Numbers given as such.

    Raises:
        LvlmAttnError: if there is anything but layer numbers.
    """
    if layers is None or isinstance(layers, str):
        return []
    try:
        items = list(layers) if isinstance(layers, Iterable) else [layers]
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        numbers = [operator.index(item) for item in items]
    except TypeError:
        numbers = [-1]
    if any(not 0 <= number <= DEEPEST for number in numbers):
        raise LvlmAttnError(
            f"{method}: layers={shown(layers)} must be whole numbers from 0 on, or text such as '18..31' or '2:-1'."
        )
    return numbers


def _expand(text: str, count: int, whole: Layers, method: str) -> list[int]:
    """The layers that one part of a text chooses of `count`."""
    if _NUMBER.fullmatch(text):
        return [int(text)]
    if match := _RANGE.fullmatch(text):
        first, last = int(match[1]), int(match[2])
        if first <= last:
            return list(range(first, last + 1))
    if match := _SLICE.fullmatch(text):
        begin, end = (int(part) if part else None for part in match.groups())
        return list(range(count))[begin:end]
    raise LvlmAttnError(
        f"{method}: layers={shown(whole)} cannot be read at {shown(text)}; write a number, a range like 18..31, or a "
        f"slice like 2:-1."
    )
