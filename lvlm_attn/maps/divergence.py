"""T-VHD along an answer: how much the heads depend on the image when each token is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.maps.occluded_runs import Runner
from lvlm_attn.maps.picking import rows_of

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps, Word


def t_vhd(maps: AttentionMaps, *, top: int = 16, layers: Layers = None, power: int = 2) -> list[float]:
    """T-VHD of every row: the prompt and the answer before its token, with the image and without it.

    Two passes for each row; what acted when the maps were recorded acts on the one with the image.

    Source: VHR (arXiv 2412.13949), equation 5.

    Args:
        maps: of a single sample, as a recorder made them.
        top: how many heads of a layer are added up.
        layers: which layers; None for all.
        power: 2 for squared distances, 1 for distances.

    Raises:
        LvlmAttnError: if the model or its inputs are not at hand.

    Example:
        >>> t_vhd(lvlm.maps["dog"])  # doctest: +SKIP
        [2021.5]
    """
    maps._lone("t_vhd")
    if maps.live is None:
        raise LvlmAttnError(
            "T-VHD runs the model again, and these maps were read from a file or made by hand; record them anew."
        )
    model = maps.live.need_model("T-VHD")
    return [
        float(Runner(maps, [target], model, 0).divergence(layers, power).t_vhd(top)[0])
        for target in maps.targets[0].tolist()
    ]


def vhd_along(maps: AttentionMaps, hallucinated: Sequence[Word] = (), **options: Any) -> Any:
    """Draws T-VHD of every row, with hallucinated words marked; see `AttentionMaps.vhd_along`."""
    from lvlm_attn.maps.draw.divergence import vhd_along as draw

    bad = [row for word in hallucinated for row in rows_of(maps, word)]
    return draw(maps.tokens, t_vhd(maps, **options), bad)
