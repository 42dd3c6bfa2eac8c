"""The bare and the intervened model beside each other, and the difference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.draw.heat import Heat, colour_bar, draw_heat, draw_picture, hatch, heat_of, written
from lvlm_attn.maps.draw.overlay import RING, _shape
from lvlm_attn.maps.draw.style import (
    INK,
    NOTE,
    asked,
    chosen,
    foot,
    new_figure,
    percent,
    plain,
    points,
    quoted,
)
from lvlm_attn.maps.naming import short_name

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_FALL = 0.15
"""Which share of the largest change a fall has to be to be dotted."""
_TINY = 1e-12


def compare(
    bare: AttentionMaps,
    intervened: AttentionMaps,
    *,
    image: int | None = None,
    level: str = "all",
    smooth: bool = False,
) -> Any:
    """Draws the picture, two maps of it in the same colours, and the second minus the first (divided by it, if ratios).

    Args:
        bare: maps of a single sample.
        intervened: maps of the same picture, layers and view, recorded under interventions.
        image: which image, where there are several.
        level: see `overlay`.
        smooth: see `overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if the two cannot be subtracted.

    Example:
        >>> compare(bare["dog"], with_var["dog"])  # doctest: +SKIP
    """
    first, second = (heat_of(maps, image, level, smooth) for maps in (bare, intervened))
    _check_alike(bare, intervened, first.values.shape == second.values.shape)
    limit = max(first.limit, second.limit)
    width, height = _shape(first, 2.9)
    figure = new_figure(4 * width + 2.6, height + 2.3)
    plain_picture, *panels = figure.subplots(1, 4)
    draw_picture(plain_picture, first.known, "picture")
    for axes, heat, maps, name in zip(panels, (first, second), (bare, intervened), ("bare", "")):
        drawn = draw_heat(axes, heat, limit)
        axes.set_title(
            f"{name or _named(maps)}: {quoted(maps)}\n{_sum(heat.mass, bare)}", fontsize=9, color=INK
        )
    colour_bar(figure, drawn, panels[1], first.unit)
    _draw_change(figure, panels[2], first, second)
    figure.suptitle(chosen(bare), fontsize=10, color=INK)
    foot(figure, NOTE, *asked(bare, intervened), RING)
    return figure


def _draw_change(figure: Any, axes: Any, first: Heat, second: Heat) -> None:
    """The last panel: where it rose, and, dotted, where it fell."""
    if first.is_ratio:
        change = replace(first, values=second.values / np.maximum(first.values, _TINY))
        top, fallen = change.limit, 0.8
        has_fallen = np.nan_to_num(change.values, nan=1.0) < fallen
        title, unit = f"second divided by first\n(dotted: below {fallen:g}x)", "quotient (log scale)"
    else:
        values, mass = second.values - first.values, second.mass - first.mass
        change = replace(first, values=values, mass=mass, is_signed=True, sign=" points")
        top = max(float(np.nanmax(np.abs(values))), 1e-12)
        has_fallen = np.nan_to_num(values) < -_FALL * top
        title = (
            f"difference: {points(mass)} on the picture\ndotted: fell by over {written(_FALL * top)} points"
        )
        unit = f"change of {first.unit.replace('(%)', '(percentage points)')}"
    drawn = draw_heat(axes, change, top, mark=bool(np.nanmax(change.values) > 0))
    if has_fallen.any():
        hatch(axes, has_fallen, "....")  # in grey both ends of the colours are dark
    axes.set_title(title, fontsize=9, color=INK)
    colour_bar(figure, drawn, axes, unit)


def _check_alike(bare: AttentionMaps, intervened: AttentionMaps, is_one_shape: bool) -> None:
    if not is_one_shape or bare.layout.grids != intervened.layout.grids:
        raise LvlmAttnError("These maps are of different pictures; compare maps of the same one.")
    if (
        bare.view_name != intervened.view_name
        or bare.layers != intervened.layers
        or bare.heads != intervened.heads
    ):
        raise LvlmAttnError("These maps show other views, layers or heads; choose the same of both.")


def _named(maps: AttentionMaps) -> str:
    """The interventions, shortly."""
    return plain(short_name(maps), 24) if maps.meta.get("interventions") else "other"


def _sum(mass: float, maps: AttentionMaps) -> str:
    if maps.view_name == "contrast":
        return "ratio to the neutral prompt"
    return f"{points(mass) if maps.view_name == 'relative' else percent(mass)} on the picture"
