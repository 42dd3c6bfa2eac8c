"""Numbers by layer and head: image mass as a grid, entropy and mass as lines, classes of keys as a stack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import count_of
from lvlm_attn.maps.draw.style import FAINT, INK, NOTE, SEQUENTIAL, asked, foot, new_figure, plain, quoted
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.statistics import CLASSES, class_masses, entropies, image_mass

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "++")
_FILLS = ("#00224e", "#6c6e72", "#fee838", "#9a9a9a", "#d9d9d9", "#ffffff")


def heat_table(
    values: Map,
    layers: tuple[Any, ...],
    heads: tuple[int, ...],
    *,
    title: str,
    unit: str,
    top: float | None = None,
) -> Any:
    """Draws `(layers, heads)` numbers as a grid; small grids show the numbers as well."""
    down, across = values.shape
    figure = new_figure(max(5.4, 0.3 * across + 2.2), max(2.8, 0.26 * down + 1.6))
    axes = figure.subplots()
    high = top if top is not None else max(float(np.nanmax(values)), 1e-12)
    drawn = axes.imshow(values, cmap=SEQUENTIAL, vmin=0, vmax=high, aspect="auto", interpolation="nearest")
    axes.set_xlabel("head", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.set_xticks(_ticks(across), [str(heads[index]) if heads else "mean" for index in _ticks(across)])
    axes.set_yticks(_ticks(down), [str(layers[index]) for index in _ticks(down)])
    axes.tick_params(labelsize=7)
    if down * across <= 100:
        for row in range(down):
            for col in range(across):
                colour = "white" if values[row, col] < 0.55 * high else INK
                axes.text(
                    col,
                    row,
                    _cell(float(values[row, col]), high),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=colour,
                )
    bar = figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(title, fontsize=10, color=INK)
    return figure


def layer_head_grid(maps: AttentionMaps, *, image: int | None = None) -> Any:
    """Draws how much of its attention every head puts on the image, in percent.

    Args:
        maps: any number of samples and rows, which are averaged.
        image: which image; all of them if not given.

    Returns:
        A matplotlib figure.
    """
    values = 100 * image_mass(maps, image)
    several = max(map(len, maps.layout.grids), default=0) > 1
    which = f"image {image}" if image is not None else "the images" if several else "the image"
    figure = heat_table(
        values,
        maps.layers,
        maps.heads,
        title=f"Attention of {_whose(maps)} on {which}",
        unit="share of the attention (%)",
    )
    foot(figure, NOTE, *asked(maps))
    return figure


def _whose(maps: AttentionMaps) -> str:
    """The word, if the rows are of one; else how many tokens."""
    if maps.batch == 1 and maps.pieces is not None and len(maps.words) == 1:
        return quoted(maps)
    return f"{len(maps)} tokens, mean,"


def _cell(value: float, high: float) -> str:
    """A number of a cell; rounding errors of sums are 0."""
    if abs(value) < 1e-6 * high:
        return "0"
    return "<0.0001" if 0 < value < 1e-4 else f"{value:.3g}"


def by_layer(maps: AttentionMaps) -> Any:
    """Draws image mass and entropy by layer: the mean over heads, and the range from the lowest head to the highest.

    Args:
        maps: any number of samples and rows, which are averaged.

    Returns:
        A matplotlib figure.
    """
    figure = new_figure(7.2, 3.1)
    panels = figure.subplots(1, 2)
    places = np.arange(len(maps.layers))
    plots = (
        (100 * image_mass(maps), "on image patches (%)", "Attention on the image", "o"),
        (entropies(maps), "entropy (nats)", "Spread of the attention", "s"),
    )
    for axes, (values, unit, title, marker) in zip(panels, plots):
        axes.fill_between(
            places, values.min(1), values.max(1), color="#b9c4d6", label="lowest to highest head"
        )
        axes.plot(
            places, values.mean(1), color="#00224e", marker=marker, markersize=4, label="mean of the heads"
        )
        axes.set_xticks(_ticks(len(places)), [str(maps.layers[index]) for index in _ticks(len(places))])
        axes.set_xlabel("layer", fontsize=9)
        axes.set_ylabel(unit, fontsize=9)
        axes.set_ylim(bottom=0)
        axes.set_title(title, fontsize=10, color=INK)
        axes.tick_params(labelsize=7)
        axes.grid(axis="y", color="0.9")
        axes.legend(fontsize=7, frameon=False)
    figure.suptitle(_averaged(maps), fontsize=9, color=FAINT)
    foot(figure, NOTE, *asked(maps))
    return figure


def class_plot(maps: AttentionMaps) -> Any:
    """Draws which share of the attention goes to which class of keys, layer by layer, as a stack.

    Args:
        maps: any number of samples and rows, which are averaged; raw weights.

    Returns:
        A matplotlib figure.
    """
    found = class_masses(maps)
    figure = new_figure(max(5.5, 0.28 * len(maps.layers) + 3.6), 3.4)
    axes = figure.subplots()
    places, below = np.arange(len(maps.layers)), np.zeros(len(maps.layers))
    for name, hatch, fill in zip(CLASSES, _HATCHES, _FILLS):
        share = 100 * found[name]
        if not share.any():
            continue
        edge = "white" if fill in _FILLS[:2] else INK
        axes.bar(
            places,
            share,
            bottom=below,
            width=0.9,
            label=name,
            color=fill,
            hatch=hatch,
            edgecolor=edge,
            linewidth=0.4,
        )
        below += share
    axes.set_xticks(_ticks(len(places)), [str(maps.layers[index]) for index in _ticks(len(places))])
    axes.set_xlabel("layer", fontsize=9)
    axes.set_ylabel("share of the attention (%)", fontsize=9)
    axes.set_ylim(0, max(100.0, float(below.max())))
    axes.tick_params(labelsize=7)
    axes.set_title("Where the attention goes", fontsize=10, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5)
    )
    figure.suptitle(_averaged(maps), fontsize=9, color=FAINT)
    foot(figure, NOTE, *asked(maps))
    return figure


def _averaged(maps: AttentionMaps) -> str:
    heads = f", {count_of(len(maps.heads), 'head')}" if maps.heads else ""
    model = plain(str(maps.meta.get("model", "")), 60)
    if maps.batch == 1 and len(maps) == 1:
        of = f"{quoted(maps)}, mean of{heads[1:]}" if heads else quoted(maps)
    else:
        of = f"mean of {count_of(maps.batch, 'sample')}, {count_of(len(maps), 'token')}{heads}"
    return f"{model}: {of}" if model else of


def _ticks(count: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // 16))))
