"""A grid of parameters as text: `pai:alpha=0.1,0.2;gamma=1.0,1.1`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.interventions.grammar import split

MOST_POINTS = 1000


def grid_points(texts: Sequence[str]) -> list[str]:
    """All points of grids, each as `lvlm_attn.parse` reads it.

    Args:
        texts: grids; a method's parameters are separated by semicolons and their values by commas, methods are joined
            by `+`. Lists as values stand in brackets. Several grids give the points of one after the other's.

    Raises:
        LvlmAttnError: a parameter without values, or more than 1000 points.

    Example:
        >>> grid_points(["pai:alpha=0.1,0.2;gamma=1.0,1.1"])[:2]
        ['pai:alpha=0.1,gamma=1.0', 'pai:alpha=0.1,gamma=1.1']
    """
    points: list[str] = []
    for text in texts:
        parts = [_of_method(part.strip()) for part in split(text, "+")]
        count = len(points)
        for part in parts:
            count = count + len(part) if part is parts[0] else count * len(part)
        if count > MOST_POINTS:
            raise LvlmAttnError(
                f"the grid {shown(text)} has more than {MOST_POINTS} points; give fewer values, or several sweeps."
            )
        points += ["+".join(point) for point in product(*parts)]
    if not points:
        raise LvlmAttnError("a sweep needs a grid, such as --grid 'pai:alpha=0.1,0.2;gamma=1.0,1.1'.")
    return list(dict.fromkeys(points))


def _of_method(text: str) -> list[str]:
    name, _, rest = text.partition(":")
    axes = [_axis(text, pair.strip()) for pair in split(rest, ";") if pair.strip()]
    return [f"{name.strip()}:{','.join(point)}" if point else name.strip() for point in product(*axes)]


def _axis(text: str, pair: str) -> list[str]:
    key, equals, values = pair.partition("=")
    listed = [value.strip() for value in split(values, ",")]
    if not equals or not all(listed):
        raise LvlmAttnError(
            f"the grid {shown(text)} holds {shown(pair)}, which is not of the form key=value,value."
        )
    stray = next((value for value in listed if "=" in value and value[0] not in "'\"["), None)
    if stray is not None:
        raise LvlmAttnError(
            f"the grid {shown(text)} has {shown(stray)} among the values of {key.strip()}; separate parameters by "
            "semicolons, as in pai:alpha=0.1,0.2;gamma=1.0,1.1."
        )
    return [f"{key.strip()}={value}" for value in listed]
