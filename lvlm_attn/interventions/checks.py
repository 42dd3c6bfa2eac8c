"""Checks of parameters, each with one sentence that names the method, the parameter and what it may be.

Every parameter has bounds: beyond them it could never act, or would fill the model with infinities.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from contextlib import suppress

from lvlm_attn.errors import LvlmAttnError, UnsupportedError, closest, shown
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.layers import canonical_layers, format_layers

MOST_GAIN = 100.0
"""Largest factor, gain or strength of a contrast: far beyond any that is used, and far from overflow."""

MOST_COUNT = 2**31 - 1
"""Largest whole number where nothing else bounds it."""

MOST_WORDS = 10_000
"""Characters of a parameter that is text."""


def is_whole(value: object, least: int, most: int = MOST_COUNT) -> bool:
    """Whether a value is a whole number within bounds, numpy's included; true and false are none."""
    return not isinstance(value, bool) and isinstance(value, numbers.Integral) and least <= int(value) <= most


def need_number(
    item: Intervention,
    key: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float = MOST_GAIN,
    remark: str = "",
) -> None:
    """Turns a parameter into a float within bounds.

    Args:
        item: the intervention.
        key: the parameter.
        least: the smallest value.
        above: what the value must be above.
        most: the largest value.
        remark: what else the message should say.

    Raises:
        LvlmAttnError: if it is no finite number, or outside.
    """
    value = getattr(item, key)
    number = _number(value)
    fits = number is not None and (
        (least is None or number >= least) and (above is None or number > above) and number <= most
    )
    if not fits:
        bounds = [f"at least {least:g}"] if least is not None else []
        bounds += [f"above {above:g}"] if above is not None else []
        bounds += [f"at most {most:g}"]
        raise LvlmAttnError(
            f"{item.title}: {key}={shown(value)} must be a number {' and '.join(bounds)}{_after(remark)}."
        )
    object.__setattr__(item, key, number)


def need_whole(
    item: Intervention,
    key: str,
    least: int,
    most: int = MOST_COUNT,
    *,
    remark: str = "",
    or_none: bool = False,
) -> None:
    """Turns a parameter into an `int` within bounds.

    Args:
        item: the intervention.
        key: the parameter.
        least: the smallest value.
        most: the largest value.
        remark: what else the message should say.
        or_none: whether None is taken as well.

    Raises:
        LvlmAttnError: if it is no whole number, or outside.
    """
    value = getattr(item, key)
    if value is None and or_none:
        return
    if not is_whole(value, least, most):
        bounds = f"at least {least}" + (f" and at most {most}" if most < MOST_COUNT else "")
        raise LvlmAttnError(
            f"{item.title}: {key}={shown(value)} must be a whole number of {bounds}{_after(remark)}."
        )
    object.__setattr__(item, key, int(value))


def need_wholes(item: Intervention, key: str, *, example: str, remark: str, most: int = MOST_COUNT) -> None:
    """Turns a parameter into a tuple of whole numbers from 0 on; a single one may be given alone.

    Args:
        item: the intervention.
        key: the parameter.
        example: what it may look like.
        remark: what else the message should say.
        most: the largest number.

    Raises:
        LvlmAttnError: if it holds anything else, or nothing.
    """
    value = getattr(item, key)
    found: tuple[object, ...] = (value,)
    if not isinstance(value, str):
        with suppress(TypeError):
            found = tuple(value)
    if not 0 < len(found) <= MOST_WORDS or not all(is_whole(one, 0, most) for one in found):
        raise LvlmAttnError(
            f"{item.title}: {key}={shown(value)} must be whole numbers from 0 on, as in {example}{_after(remark)}."
        )
    object.__setattr__(item, key, tuple(int(one) for one in found))  # type: ignore[call-overload]


def need_choice(item: Intervention, key: str, choices: Sequence[str]) -> None:
    """Raises `LvlmAttnError`, with the closest choice, unless a parameter is one of `choices`."""
    value = getattr(item, key)
    if not isinstance(value, str) or value not in choices:
        raise LvlmAttnError(
            f"{item.title}: {key}={shown(value)} must be one of {', '.join(choices)}.{closest(str(value), choices)}"
            if isinstance(value, str)
            else f"{item.title}: {key}={shown(value)} must be one of {', '.join(choices)}."
        )


def need_flag(item: Intervention, key: str) -> None:
    """Raises `LvlmAttnError` unless a parameter is true or false."""
    if not isinstance(getattr(item, key), bool):
        raise LvlmAttnError(f"{item.title}: {key}={shown(getattr(item, key))} must be true or false.")


def need_words(item: Intervention, key: str, *, remark: str = "") -> None:
    """Raises `LvlmAttnError` unless a parameter is text that says something."""
    value = getattr(item, key)
    if not isinstance(value, str) or not value.strip() or len(value) > MOST_WORDS:
        raise LvlmAttnError(
            f"{item.title}: {key}={shown(value)} must be some words, at most {MOST_WORDS} characters{_after(remark)}."
        )


def need_layers(item: Intervention, words: Sequence[str] = ()) -> None:
    """Brings the parameter `layers` to its canonical form.

    Args:
        item: the intervention.
        words: names that are taken in place of layers.

    Raises:
        LvlmAttnError: if it chooses nothing or cannot be read.
    """
    object.__setattr__(item, "layers", canonical_layers(item.layers, item.title, words))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _after(remark: str) -> str:
    return f"; {remark}" if remark else ""


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
