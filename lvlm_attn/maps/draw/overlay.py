"""A map over its picture, and one map for every token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.draw.heat import Heat, colour_bar, draw_heat, draw_picture, heat_of
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

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_MOST = 60
_LIGHT = 0.5
"""How much of the colour lies over small pictures."""
RING = "Ring: the patch with the highest value, which stands beside it."


def overlay(
    maps: AttentionMaps, *, image: int | None = None, level: str = "all", smooth: bool = False
) -> Any:
    """Draws the picture, and beside it what the tokens attended to.

    Args:
        maps: of a single sample; all its rows, layers and heads are averaged.
        image: which image, where there are several.
        level: `"all"`, `"coarse"` (the thumbnail alone) or `"fine"` (the tiles alone).
        smooth: blend between patches; the default shows each patch as what it is, one number.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if where the patches lie is not known, or matplotlib is missing.

    Example:
        >>> overlay(lvlm.maps["dog"]).savefig("dog.svg")  # doctest: +SKIP
    """
    heat = heat_of(maps, image, level, smooth)
    width, height = _shape(heat)
    figure = new_figure(2 * width + 1.6, height + 1.9)
    left, right = figure.subplots(1, 2)
    draw_picture(left, heat.known, "picture")
    drawn = draw_heat(right, heat)
    right.set_title(_says(maps, heat), fontsize=9, color=INK)
    colour_bar(figure, drawn, right, heat.unit)
    figure.suptitle(f"What {quoted(maps)} attends to\n{chosen(maps)}", fontsize=10, color=INK)
    foot(figure, NOTE, *asked(maps), RING)
    return figure


def strip(
    maps: AttentionMaps,
    *,
    image: int | None = None,
    columns: int = 8,
    level: str = "all",
    smooth: bool = False,
) -> Any:
    """Draws the picture, and one map for every token, all in the same colours.

    Args:
        maps: of a single sample.
        image: which image, where there are several.
        columns: maps side by side.
        level: see `overlay`.
        smooth: see `overlay`.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if there are no tokens, or more than fit a picture.
    """
    count = len(maps)
    if not 1 <= count <= _MOST:
        raise LvlmAttnError(
            f"A strip shows 1 to {_MOST} tokens, and these maps have {count}; choose some, as in maps[:24]."
        )
    heats = [heat_of(row, image, level, smooth) for row in maps]
    limit = max(heat.limit for heat in heats)
    across = max(1, min(columns, count + 1))
    down = math.ceil((count + 1) / across)
    width, height = _shape(heats[0], 1.5)
    figure = new_figure(max(across * (width + 0.08) + 1, 5), down * (height + 0.4) + 1.5)
    figure.set_layout_engine("compressed", h_pad=0.03, w_pad=0.03)
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.ravel()[count + 1 :]:
        axes.set_visible(False)
    draw_picture(panels.flat[0], heats[0].known, "")
    panels.flat[0].set_title("picture", fontsize=7.5, color=INK)
    _without_axes(panels.flat[0])
    drawn = None
    for place, axes in enumerate(panels.ravel()[1 : count + 1]):
        drawn = draw_heat(axes, heats[place], limit, mark=False, alpha=_LIGHT)
        _without_axes(axes)
        text = plain(maps.tokens[place].strip() or maps.tokens[place], 14)
        axes.set_title(f"{text}\n{percent(heats[place].mass)}", fontsize=7.5, color=INK)
    colour_bar(figure, drawn, panels, heats[0].unit)
    what = "change of weight on the picture" if heats[0].is_signed else "weight on the picture"
    figure.suptitle(f"What each token attends to, with its {what}\n{chosen(maps)}", fontsize=10, color=INK)
    foot(figure, NOTE, *asked(maps))
    return figure


def _without_axes(axes: Any) -> None:
    axes.set(xlabel="", ylabel="", xticks=[], yticks=[])


def _says(maps: AttentionMaps, heat: Heat) -> str:
    if maps.view_name == "contrast":
        return "above 1: more than for the neutral prompt"
    if heat.is_signed:
        return f"above (+) or below (-) the mean; sum {points(heat.mass)}"
    return f"{percent(heat.mass)} of the attention is on this picture"


def _shape(heat: Heat, side: float = 3.4) -> tuple[float, float]:
    """Width and height in inches of a panel of the picture's shape, within reason."""
    assert heat.known.size is not None
    ratio = min(max(heat.known.size[0] / heat.known.size[1], 0.4), 2.5)
    return side * math.sqrt(ratio), side / math.sqrt(ratio)
