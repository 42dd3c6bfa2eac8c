"""Vision-aware head divergence: of every head, and along a caption."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.draw.layers import heat_table
from lvlm_attn.maps.draw.style import INK, foot, new_figure, plain

if TYPE_CHECKING:
    from lvlm_attn.measures.diagnostics import Divergence

_NOTE = "VHD: how far a head's output moves when the image is taken away (arXiv 2412.13949)."


def vhd_heat_map(divergence: Divergence, *, sample: int = 0) -> Any:
    """Draws the divergence of every head.

    Args:
        divergence: what `la.vhd` measured.
        sample: which sample of the batch.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if there is no such sample.

    Example:
        >>> vhd_heat_map(la.vhd(model, inputs))  # doctest: +SKIP
    """
    if not 0 <= sample < divergence.vhd.shape[0]:
        raise LvlmAttnError(f"There is no sample {sample}; the divergence is of {divergence.vhd.shape[0]}.")
    values = divergence.vhd[sample].double().cpu().numpy()
    heads = tuple(range(values.shape[1]))
    figure = heat_table(
        values,
        divergence.layers,
        heads,
        title="Vision-aware head divergence",
        unit="VHD (distance between outputs)",
    )
    foot(figure, _NOTE)
    return figure


def vhd_along(tokens: Sequence[str], values: Sequence[float], hallucinated: Collection[int] = ()) -> Any:
    """Draws T-VHD along a caption, with hallucinated words marked.

    Args:
        tokens: text of the tokens.
        values: T-VHD at each of them (`Divergence.t_vhd` with `generated=` the caption so far).
        hallucinated: numbers of the tokens that name what is not in the picture.

    Returns:
        A matplotlib figure.

    Raises:
        LvlmAttnError: if there is not one value for each token.
    """
    if len(tokens) != len(values) or not tokens:
        raise LvlmAttnError(
            f"There are {len(tokens)} tokens and {len(values)} values; give one value per token."
        )
    places = np.arange(len(tokens))
    bad = sorted(set(hallucinated) & set(places.tolist()))
    figure = new_figure(max(5.0, 0.24 * len(tokens) + 1.4), 3.0)
    axes = figure.subplots()
    axes.plot(places, values, color="#00224e", marker="o", markersize=3, linewidth=1, label="T-VHD")
    if bad:
        axes.plot(
            bad,
            [values[index] for index in bad],
            linestyle="none",
            marker="X",
            markersize=9,
            color="#fee838",
            markeredgecolor=INK,
            label="word that is not in the picture",
        )
    axes.set_xticks(places, [plain(token.strip() or token, 14) for token in tokens], rotation=90, fontsize=7)
    for index in bad:
        axes.get_xticklabels()[index].set_fontweight("bold")
    axes.set_ylabel("T-VHD", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("How much the heads depend on the image, token by token", fontsize=10, color=INK)
    axes.legend(fontsize=7, frameon=False)
    foot(figure, _NOTE)
    return figure
