"""Checks of parameters, each with one sentence that names the method, the parameter and what it may be."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lvlm_attn.errors import LvlmAttnError, UnsupportedError, closest
from lvlm_attn.interventions.base import Intervention, Target
from lvlm_attn.interventions.layers import format_layers


def need_number(
    item: Intervention,
    key: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
) -> None:
    """Turns a parameter into a float within bounds.

    Raises:
        LvlmAttnError: if it is no finite number, or outside.
    """
    value = getattr(item, key)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = is_number and (
        (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )
    if not fits:
        bounds = [f"at least {least:g}"] if least is not None else []
        bounds += [f"above {above:g}"] if above is not None else []
        bounds += [f"at most {most:g}"] if most is not None else []
        raise LvlmAttnError(f"{item.title}: {key}={value!r} must be a number {' and '.join(bounds)}.")
    object.__setattr__(item, key, float(value))


def need_whole(item: Intervention, key: str, least: int) -> None:
    """Raises `LvlmAttnError` unless a parameter is a whole number of at least `least`."""
    value = getattr(item, key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise LvlmAttnError(f"{item.title}: {key}={value!r} must be a whole number of at least {least}.")


def need_choice(item: Intervention, key: str, choices: Sequence[str]) -> None:
    """Raises `LvlmAttnError`, with the closest choice, unless a parameter is one of `choices`."""
    value = getattr(item, key)
    if value not in choices:
        raise LvlmAttnError(
            f"{item.title}: {key}={value!r} must be one of {', '.join(choices)}.{closest(str(value), choices)}"
        )


def need_flag(item: Intervention, key: str) -> None:
    """Raises `LvlmAttnError` unless a parameter is true or false."""
    if not isinstance(getattr(item, key), bool):
        raise LvlmAttnError(f"{item.title}: {key}={getattr(item, key)!r} must be true or false.")


def need_softmax_everywhere(item: Intervention, target: Target) -> None:
    """Refuses a model in which tokens flow through layers where nothing can be hidden from others.

    Raises:
        UnsupportedError: naming the layers without softmax attention.
    """
    if target.skipped_layers:
        raise UnsupportedError(
            f"{item.title} hides image tokens in every layer, and layers {format_layers(target.skipped_layers)} of "
            f"this {target.family.title} model have no softmax attention, in which nothing can be hidden; use a "
            f"method that acts in single layers."
        )
