"""The causal check beside the attention, region by region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.maps.draw.style import DIVERGING, FAINT, INK, SEQUENTIAL, foot, grey_picture, new_figure, plain
from lvlm_attn.maps.maps import Map

if TYPE_CHECKING:
    from lvlm_attn.maps.occlusion import Occlusion


def draw_occlusion(check: Occlusion) -> Any:
    """Draws the drop of the logit beside the attention on the same regions.

    Args:
        check: what `AttentionMaps.occlude` found.

    Returns:
        A matplotlib figure.
    """
    figure = new_figure(9.6, 4.4)
    left, right = figure.subplots(1, 2)
    top = max(float(np.abs(check.drop).max()), 1e-12)
    drawn = _regions(left, check, check.drop, DIVERGING, -top, top)
    left.set_title("drop of the logit without the region", fontsize=9, color=INK)
    figure.colorbar(drawn, ax=left, shrink=0.85).set_label("logits (above 0: the word needs it)", fontsize=8)
    most = max(float(check.attention.max()), 1e-12)
    drawn = _regions(
        right, check, 100 * check.attention, SEQUENTIAL, min(0.0, 100 * check.attention.min()), 100 * most
    )
    right.set_title(f"attention on the region ({check.view})", fontsize=9, color=INK)
    figure.colorbar(drawn, ax=right, shrink=0.85).set_label("attention weight (%)", fontsize=8)
    figure.suptitle(
        f"“{plain(check.word)}”: logit {check.logit:.2f} with the whole image; rank correlation "
        f"{check.correlation:+.2f}",
        fontsize=10,
        color=INK,
    )
    how = (
        "keys hidden from all other positions" if check.by == "keys" else "pixels painted in the mean colour"
    )
    foot(figure, f"Regions taken away one at a time ({how}).")
    return figure


def _regions(axes: Any, check: Occlusion, values: Map, colours: str, low: float, high: float) -> Any:
    """One number per region over the greyed picture, where it is known."""
    levels, size = check.image.levels, check.image.size
    if levels is None or size is None:
        return axes.imshow(values, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
    frame = levels[-1].frame
    axes.imshow(
        grey_picture(check.image.picture, size), cmap="gray", vmin=0, vmax=1, extent=(0, size[0], size[1], 0)
    )
    drawn = axes.imshow(
        values,
        cmap=colours,
        vmin=low,
        vmax=high,
        alpha=0.72,
        extent=(frame.left, frame.right, frame.bottom, frame.top),
        interpolation="nearest",
    )
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("pixels from the left", fontsize=7, color=FAINT)
    axes.set_ylabel("pixels from the top", fontsize=7, color=FAINT)
    return drawn
