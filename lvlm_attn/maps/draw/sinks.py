"""Which patches are sinks, layer by layer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lvlm_attn.errors import LvlmAttnError, count_of
from lvlm_attn.maps.draw.style import INK, NOTE, SEQUENTIAL, asked, foot, new_figure, percent, quoted
from lvlm_attn.maps.onto_image import choose_image, patch_positions
from lvlm_attn.maps.views import find_sinks

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


def sink_map(
    maps: AttentionMaps,
    *,
    image: int | None = None,
    block: int = 0,
    columns: int = 6,
    tau: float | None = None,
    factor: float = 5.0,
) -> Any:
    """Draws for every layer how much attention each patch receives, with the sinks framed.

    Args:
        maps: of a single sample; its rows and heads are averaged.
        image: which image, where there are several.
        block: which block of the image's grid.
        columns: layers side by side.
        tau: see `lvlm_attn.maps.views.find_sinks`.
        factor: see `lvlm_attn.maps.views.find_sinks`.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if sinks cannot be told from what was recorded, or there is no such block.
    """
    number = choose_image(maps, image)
    blocks = patch_positions(maps, number)
    if not 0 <= block < len(blocks):
        raise LvlmAttnError(
            f"Image {number} has {count_of(len(blocks), 'block')}, numbered from 0; there is no block {block}."
        )
    places = blocks[block]
    sinks = find_sinks(maps, tau, factor)
    layers = [layer for layer in maps.layers if layer in sinks]
    if not layers:
        raise LvlmAttnError("No sinks were recorded for these layers; choose others with maps.layer(...).")
    across = min(columns, len(layers))
    down = math.ceil(len(layers) / across)
    figure = new_figure(
        max(1.7 * across + 1.2, 5.0), 1.7 * down * places.shape[0] / places.shape[1] + 0.35 * down + 1.1
    )
    panels = figure.subplots(down, across, squeeze=False)
    values = [100 * maps.layer(layer).mean()[places] for layer in layers]
    top = max(max(float(item.max()) for item in values), 1e-12)
    drawn = None
    for axes in panels.ravel()[len(layers) :]:
        axes.set_visible(False)
    for axes, layer, value in zip(panels.ravel(), layers, values):
        drawn = _panel(axes, layer, value, sinks[layer][0].numpy()[places], top)
    _label(figure, panels, drawn, maps)
    return figure


def _label(figure: Any, panels: Any, drawn: Any, maps: AttentionMaps) -> None:
    """The colour bar with its unit, and what the figure shows of what."""
    bar = figure.colorbar(drawn, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("attention received per patch (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    test = "VAR's sink score" if maps.sink_scores else "nearly every query attends to it"
    figure.suptitle(
        f"Sinks among the patches (framed: {test}), and their share of what the image receives",
        fontsize=9,
        color=INK,
    )
    whose = quoted(maps) if len(maps) == 1 else count_of(len(maps), "token")
    panels[0, 0].set_ylabel("patch row", fontsize=7)
    panels[0, 0].set_xlabel("patch column", fontsize=7)
    foot(figure, NOTE, *asked(maps), f"Mean of {whose} and all recorded heads.")


def _panel(axes: Any, layer: Any, value: NDArray[Any], is_sink: NDArray[Any], top: float) -> Any:
    """One layer: what each patch receives, in percent, and frames around the sinks."""
    drawn = axes.imshow(value, cmap=SEQUENTIAL, vmin=0, vmax=top, interpolation="nearest")
    for row, col in np.argwhere(is_sink):
        axes.add_patch(_frame(row, col, "white", 2.4))
        axes.add_patch(_frame(row, col, INK, 1.0))
    share = value[is_sink].sum() / value.sum() if value.sum() > 0 else 0.0
    label = f"{count_of(int(is_sink.sum()), 'sink')}, {percent(share)}" if is_sink.any() else "no sink"
    axes.set_title(f"layer {layer}\n{label}", fontsize=7.5, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    return drawn


def _frame(row: int, col: int, colour: str, width: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((col - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=colour, linewidth=width)
