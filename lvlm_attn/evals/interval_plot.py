"""Differences to the reference with their 95 % intervals, drawn as SVG."""

from __future__ import annotations

import html
import math

from lvlm_attn.evals.compare import Comparison

_ROW, _LEFT, _WIDTH, _HEAD = 22, 330, 960, 34


def interval_plot(comparison: Comparison) -> str:
    """One line per metric and run, in points; metrics that are no shares are left out."""
    tally = comparison.tally
    metrics = [name for name in tally.compared if name not in tally.units]
    rows = [
        (metric, name, pairing.metrics[metric])
        for metric in metrics
        for name, pairing in comparison.runs.items()
        if pairing.metrics[metric].is_defined
    ]
    reach = max((abs(100 * end) for _, _, change in rows for end in (change.low, change.high)), default=1.0)
    step = _step(reach)
    reach = max(step, math.ceil(reach / step) * step)

    def x(points: float) -> float:
        return _LEFT + (points + reach) / (2 * reach) * (_WIDTH - _LEFT - 20)

    height = _HEAD + _ROW * len(rows) + 10
    ticks = [i * step for i in range(-round(reach / step), round(reach / step) + 1)]
    drawn = [
        f'<line x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{_HEAD - 8}" y2="{height - 8}" stroke="currentColor" '
        f'stroke-opacity="{0.6 if t == 0 else 0.15}"/>'
        f'<text x="{x(t):.1f}" y="{_HEAD - 14}" text-anchor="middle">{t:+g}</text>'
        for t in ticks
    ]
    for place, (metric, name, change) in enumerate(rows):
        y = _HEAD + _ROW * (place + 0.5)
        color = _color(metric, change.difference, change.p_holm, comparison)
        label = html.escape(f"{metric}, {_short(name)}")
        drawn.append(
            f'<text x="{_LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
            f'<line x1="{x(100 * change.low):.1f}" x2="{x(100 * change.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{color}" stroke-width="2.5"/>'
            f'<circle cx="{x(100 * change.difference):.1f}" cy="{y:.1f}" r="4.5" fill="{color}">'
            f"<title>{100 * change.difference:+.2f} ({100 * change.low:+.2f} to {100 * change.high:+.2f})</title>"
            f"</circle>"
        )
    title = html.escape(f"Change against {comparison.reference.name}, in points, with 95 % intervals")
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}"><title>{title}</title>'
        f'<text x="0" y="{_HEAD - 14}">{html.escape("Change in points")}</text>{"".join(drawn)}</svg>'
    )


def _step(reach: float) -> float:
    """A round distance of ticks that gives two to five of them on each side."""
    if reach <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(reach))
    return next(factor * power for factor in (0.2, 0.5, 1.0, 2.0, 5.0) if reach / (factor * power) <= 5)


def _color(metric: str, difference: float, p: float, comparison: Comparison) -> str:
    if p >= 0.05 or metric in comparison.tally.neither:
        return "#808080"
    is_better = (difference < 0) == (metric in comparison.tally.lower_is_better)
    return "#2da44e" if is_better else "#d1242f"


def _short(name: str) -> str:
    return name if len(name) <= 28 else "..." + name[-25:]
