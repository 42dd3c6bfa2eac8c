"""What all pictures share: colours that survive grey paper and colour blindness, words on a picture, the figure."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.naming import full_name

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

SEQUENTIAL = "cividis"  # lightness rises evenly; made for colour blindness (Nunez et al., arXiv 1712.01662)
DIVERGING = "PuOr_r"  # purple to orange, which no common colour blindness confuses
NOTE = "Attention shows where the model looks; it does not prove what caused the answer."
INK, FAINT = "#222222", "#666666"


def new_figure(width: float, height: float) -> Any:
    """A figure that belongs to nobody's pyplot and shows itself in notebooks.

    Raises:
        LvlmAttnError: if matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LvlmAttnError(
            "Pictures need matplotlib; install it with `pip install lvlm-attn[viz]`."
        ) from error

    class MapFigure(Figure):
        """A matplotlib figure; `savefig` writes PNG, SVG and PDF."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    figure = MapFigure(figsize=(width, height), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str, limit: int = 60) -> str:
    r"""Text of a model or a file as matplotlib may draw it: no formulas, no line breaks, not too long.

    Example:
        >>> plain("cost: $5")
        'cost: \\$5'
    """
    shown = "".join(letter if letter.isprintable() else "·" for letter in text.replace("\n", "↵"))
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "…"
    return shown.replace("\\", "\\\\").replace("$", r"\$")


def quoted(maps: AttentionMaps) -> str:
    """The tokens that the rows of a single sample are about, as they read."""
    text = "".join(maps.tokens).strip()
    return f"“{plain(text, 40)}”"


def chosen(maps: AttentionMaps) -> str:
    """Which layers, heads and view maps show.

    Example: ``mean of layers 2 to 4 (of 0 to 5), mean of 4 heads, raw weights``.
    """
    layers, depth = maps.layers, maps.meta.get("layers")
    count = len(layers)
    of = f" (of 0 to {depth - 1})" if isinstance(depth, int) and count < depth else ""
    if layers == ("mean",):
        part = "layers averaged while recording"
    elif layers == ("rollout",):
        part = "all layers"
    elif count == 1:
        part = f"layer {layers[0]}{of}"
    elif depth == count:
        part = f"mean of all {depth} layers"
    else:
        part = f"mean of layers {runs([layer for layer in layers if isinstance(layer, int)])}{of}"
    if len(maps.heads) == 1:
        heads = f"head {maps.heads[0]}"
    else:
        averaged = len(maps.heads) or maps.meta.get("averaged_heads")
        heads = f"mean of {averaged} heads" if averaged else "mean of the heads"
    view = maps.meta.get("view_note") or "raw weights"
    return f"{part}, {heads}, {plain(str(view), 100)}"


def runs(numbers: Sequence[int]) -> str:
    """Whole numbers with neighbours joined.

    Example:
        >>> runs([0, 1, 2, 5])
        '0 to 2, 5'
    """
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in parts)


def foot(figure: Any, text: str = NOTE, *lines: str) -> None:
    """Small print below everything, as wide as the figure."""
    across = max(40, int(16 * figure.get_figwidth()))  # letters
    shown = [part for line in (*lines, text) for part in textwrap.wrap(line, across)]
    figure.supxlabel("\n".join(shown), fontsize=7, color=FAINT, x=0.01, ha="left")


def asked(maps: AttentionMaps, *others: AttentionMaps) -> list[str]:
    """Which model was asked what, under what interventions, and what it answered."""
    lines = []
    prompts: Sequence[Any] = maps.meta.get("prompts") or ()
    if maps.meta.get("model"):
        lines.append(f"Model: {plain(str(maps.meta['model']), 80)}.")
    if len(prompts) == 1:
        lines.append(f"Prompt: “{plain(str(prompts[0]), 200)}”")
    for one in (maps, *others):
        answers: Sequence[Any] = one.meta.get("answers") or ()
        if len(answers) == 1:
            lines.append(f"Answer ({plain(full_name(one), 120)}): “{plain(str(answers[0]), 300)}”")
    return lines


def percent(share: float) -> str:
    """A share as people read it.

    Example:
        >>> percent(0.1234), percent(0.000321)
        ('12.3 %', '0.032 %')
    """
    value = 100 * share
    if value == 0:
        return "0 %"
    digits = max(1, min(5, 1 - int(np.floor(np.log10(abs(value))))))
    return f"{value:.{digits if abs(value) < 10 else 1}f} %"


def points(share: float) -> str:
    """A difference of shares, in percentage points.

    Example:
        >>> points(0.1234), points(-0.00096)
        ('+12.3 points', '-0.096 points')
    """
    return f"{'+' if share > 0 else ''}{percent(share).removesuffix(' %')} points"


def grey_picture(picture: Any, size: tuple[int, int]) -> Map:
    """`(height, width)` in 0 to 1: the picture without colours and with little contrast, to lie below a map."""
    if picture is None:
        return np.full((size[1], size[0]), 0.9)
    grey = np.asarray(picture.convert("L"), dtype=float) / 255
    return 0.1 + 0.85 * grey
