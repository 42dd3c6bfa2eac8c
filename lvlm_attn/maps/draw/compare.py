"""The bare and the intervened model beside each other, and the difference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.draw.heat import colour_bar, draw_heat, hatch, heat_of
from lvlm_attn.maps.draw.overlay import _shape
from lvlm_attn.maps.draw.style import INK, chosen, foot, new_figure, percent, plain, quoted
from lvlm_attn.maps.naming import short_name

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


def compare(
    bare: AttentionMaps,
    intervened: AttentionMaps,
    *,
    image: int | None = None,
    level: str = "all",
    smooth: bool = False,
) -> Any:
    """Draws two maps of the same picture in the same colours, and the second minus the first.

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
    change = replace(
        first, values=second.values - first.values, mass=second.mass - first.mass, is_signed=True
    )
    limit = max(first.limit, second.limit)
    width, height = _shape(first, 3.1)
    figure = new_figure(3 * width + 2.4, height + 1.5)
    panels = figure.subplots(1, 3)
    for axes, heat, maps, name in zip(panels, (first, second), (bare, intervened), ("bare", "")):
        drawn = draw_heat(axes, heat, limit)
        axes.set_title(
            f"{name or _named(maps)}: {quoted(maps)}\n{_sum(heat.mass, bare)}", fontsize=9, color=INK
        )
    colour_bar(figure, drawn, panels[1], first.unit)
    top = max(float(np.nanmax(np.abs(change.values))), 1e-12)
    drawn = draw_heat(panels[2], change, top, mark=bool(np.nanmax(change.values) > 0))
    axes = panels[2]
    has_fallen = np.nan_to_num(change.values) < -0.15 * top
    if has_fallen.any():
        hatch(axes, has_fallen, "....")  # in grey both ends of the colours are dark
    axes.set_title(
        f"difference (dotted: fell)\n{_sum(change.mass, bare, signed=True)}", fontsize=9, color=INK
    )
    colour_bar(figure, drawn, axes, f"change of {first.unit}")
    figure.suptitle(chosen(bare), fontsize=10, color=INK)
    foot(figure)
    return figure


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


def _sum(mass: float, maps: AttentionMaps, signed: bool = False) -> str:
    if maps.view_name == "contrast":
        return "ratio to the neutral prompt"
    sign = "+" if signed and mass > 0 else ""
    return f"{sign}{percent(mass)} on the picture"
