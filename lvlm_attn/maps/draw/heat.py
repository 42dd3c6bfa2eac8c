"""A map on its picture: values, colours, bar, the highest patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.maps.draw.style import DIVERGING, FAINT, INK, SEQUENTIAL, grey_picture
from lvlm_attn.maps.maps import Map, Mask
from lvlm_attn.maps.onto_image import RATIO_VIEWS, MapImage, choose_image, map_image, pixels_of

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

ALPHA = 0.72  # how much of the colour lies over the picture


@dataclass(frozen=True, eq=False)
class Heat:
    """A map ready to be drawn.

    Attributes:
        values: `(height, width)`, in percent per patch, or plain for ratios; NaN where the model sees nothing.
        mass: what the map sums to on the picture, as a share.
        known: the picture.
        unit: what the colour bar says.
        is_signed: whether values below 0 mean something.
        sign: what follows a value where it is written, such as `" %"`.
    """

    values: Map
    mass: float
    known: MapImage
    unit: str
    is_signed: bool
    sign: str = ""

    @property
    def is_ratio(self) -> bool:
        """Whether the values are ratios, coloured by their logarithm."""
        return self.sign == "x"

    @property
    def limit(self) -> float:
        """The largest value, by size; of ratios, how far the farthest is from 1, as a factor."""
        if self.is_ratio:
            known = self.values[np.nan_to_num(self.values) > 0]
            return float(max(known.max(), 1 / known.min(), 10.0)) if known.size else 10.0
        return max(float(np.nanmax(np.abs(self.values))), 1e-12)


def heat_of(maps: AttentionMaps, image: int | None = None, level: str = "all", smooth: bool = False) -> Heat:
    """The mean of maps of a single sample, per patch of the finest level that is drawn.

    Args:
        maps: the maps.
        image: which image.
        level: see `AttentionMaps.pixels`.
        smooth: see `AttentionMaps.pixels`.
    """
    number = choose_image(maps, image)
    known = map_image(maps, number)
    assert known.levels is not None
    assert known.size is not None
    is_ratio = maps.view_name in RATIO_VIEWS
    pixels = pixels_of(known, maps.grid(number), level=level, smooth=smooth, is_ratio=is_ratio)
    finest = known.levels[0] if level == "coarse" else known.levels[-1]
    width, height = finest.frame.right - finest.frame.left, finest.frame.bottom - finest.frame.top
    area = width * height / (finest.rows * finest.cols)
    values = pixels if is_ratio else 100 * area * pixels
    values = np.where(maps.seen(number), values, np.nan)
    unit = f"{maps.unit} (log scale)" if is_ratio else f"{maps.unit} per patch (%)"
    is_signed = maps.view_name == "relative"
    sign = "x" if is_ratio else " points" if is_signed else " %"
    return Heat(values, float(pixels.sum()), known, unit, is_signed, sign)


def draw_heat(
    axes: Any,
    heat: Heat,
    limit: float | None = None,
    *,
    is_signed: bool | None = None,
    mark: bool = True,
    alpha: float = ALPHA,
) -> Any:
    """Draws a map over its greyed picture; returns the drawn image, for a colour bar.

    Args:
        axes: where to.
        heat: the map.
        limit: the value of the last colour; None for the map's own highest.
        is_signed: whether colours run from minus to plus the limit.
        mark: whether the highest patch is marked.
        alpha: how much of the colour lies over the picture.
    """
    size = heat.known.size
    assert size is not None
    signed = heat.is_signed if is_signed is None else is_signed
    top = limit if limit is not None else heat.limit
    grey = grey_picture(heat.known.picture, size)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, extent=(0, size[0], size[1], 0), interpolation="bilinear")
    drawn = axes.imshow(
        np.ma.masked_invalid(heat.values),
        cmap=DIVERGING if signed or heat.is_ratio else SEQUENTIAL,
        **_scale(heat, signed, top),
        alpha=alpha,
        extent=(0, size[0], size[1], 0),
        interpolation="nearest",
    )
    unseen = np.isnan(heat.values)
    if unseen.any():
        hatch(axes, unseen, "///")
    if mark and not unseen.all() and np.nanmax(heat.values) > 0:
        mark_peak(axes, heat)
    _pixel_axes(axes, size)
    return drawn


def _scale(heat: Heat, signed: bool, top: float) -> dict[str, Any]:
    """Which values the first and the last colour stand for."""
    if heat.is_ratio:
        from matplotlib.colors import LogNorm

        return {"norm": LogNorm(1 / top, top, clip=True)}
    return {"vmin": -top if signed else 0, "vmax": top}


def _pixel_axes(axes: Any, size: tuple[int, int]) -> None:
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    axes.set_xlabel("pixels from the left", fontsize=7, color=FAINT)
    axes.set_ylabel("pixels from the top", fontsize=7, color=FAINT)
    axes.tick_params(labelsize=7, colors=FAINT)


def hatch(axes: Any, is_part: Mask, pattern: str) -> None:
    """Hatches the pixels of a part of the picture; pictures of one pixel's width have no room for that."""
    height, width = is_part.shape
    if min(height, width) > 1:
        axes.contourf(
            np.arange(width) + 0.5,
            np.arange(height) + 0.5,
            is_part.astype(float),
            levels=[0.5, 1.5],
            colors="none",
            hatches=[pattern],
        )


def mark_peak(axes: Any, heat: Heat) -> None:
    """A ring around the middle of the highest patch, with its value."""
    is_top = heat.values >= np.nanmax(heat.values) * (1 - 1e-9)
    y, x = (np.argwhere(is_top).mean(0) + 0.5).tolist()
    size = heat.known.size
    assert size is not None
    most = float(np.nanmax(heat.values))
    label = f"{f'{most:.2g}' if heat.is_ratio else written(most)}{heat.sign}"
    right = x > 0.7 * size[0]
    axes.plot(
        [x],
        [y],
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgecolor="white",
        markeredgewidth=2.6,
    )
    axes.plot(
        [x], [y], marker="o", markersize=9, markerfacecolor="none", markeredgecolor=INK, markeredgewidth=1
    )
    axes.annotate(
        label,
        (x, y),
        xytext=(-9 if right else 9, 0),
        textcoords="offset points",
        ha="right" if right else "left",
        va="center",
        fontsize=8,
        color=INK,
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )


def written(value: float) -> str:
    """A number as people read it, with two digits at least.

    Example:
        >>> written(53.7), written(312.2), written(0.0612)
        ('54', '312', '0.061')
    """
    return f"{value:.0f}" if abs(value) >= 99.5 else f"{value:.2g}"


def draw_picture(axes: Any, known: MapImage, title: str) -> None:
    """The picture itself."""
    assert known.size is not None
    if known.picture is not None:
        axes.imshow(
            np.asarray(known.picture.convert("RGB")),
            extent=(0, known.size[0], known.size[1], 0),
            interpolation="bilinear",
        )
    _pixel_axes(axes, known.size)
    axes.set_title(title, fontsize=9, color=INK)


def colour_bar(figure: Any, drawn: Any, axes: Any, unit: str) -> None:
    """The bar that says what colours mean."""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.85, pad=0.02)
    bar.set_label(unit, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7)
