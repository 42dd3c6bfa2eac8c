"""The causal check of a map: what becomes of a word when the model cannot see a region of the image.

Attention says where the model looks. Whether it needs what it sees there is another question, which is answered
by taking regions away, one by one, and looking at the logit of the word.

Source: occlusion of regions, Zeiler and Fergus (arXiv 1311.2901), section 4.1; taking keys away instead of pixels is
attention knockout, Geva et al. (arXiv 2304.14767).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.maps.maps import Map
from lvlm_attn.maps.occluded_regions import Regions
from lvlm_attn.maps.occluded_runs import Runner
from lvlm_attn.maps.onto_image import MapImage, choose_image, map_image
from lvlm_attn.maps.statistics import rank_correlation

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps, Word


@dataclass(frozen=True, eq=False)
class Occlusion:
    """What each region of an image does for a word.

    Attributes:
        word: the word.
        drop: `(rows, cols)` of regions: the logit of the word (the mean over its tokens) minus what it is without the
            region. Positive where the region speaks for the word.
        logit: the logit with the whole image.
        attention: `(rows, cols)`, what the maps put on each region, as a share of 1.
        correlation: Spearman's rank correlation of the two.
        by: `"keys"` or `"pixels"`.
        image: the picture, as far as it is known.
        view: which view of the maps was compared.
    """

    word: str
    drop: Map
    logit: float
    attention: Map
    correlation: float
    by: str
    image: MapImage
    view: str

    def __repr__(self) -> str:
        rows, cols = self.drop.shape
        row, col = np.unravel_index(int(self.drop.argmax()), self.drop.shape)
        return (
            f"Occlusion({self.word!r}, {rows} x {cols} regions by {self.by}: logit {self.logit:.2f}, which drops most, "
            f"by {self.drop.max():.2f}, without row {row + 1}, column {col + 1}; rank correlation with attention "
            f"{self.correlation:+.2f})"
        )

    def overlay(self) -> Any:
        """The drop of the logit beside the attention, as a matplotlib figure."""
        from lvlm_attn.maps.draw.occlusion import draw_occlusion

        return draw_occlusion(self)


# Long because most of it is its parameters and what they mean.
def occlude(
    maps: AttentionMaps,
    word: int | Word,
    *,
    image: int | None = None,
    by: Literal["keys", "pixels"] = "keys",
    cells: int | None = None,
    batch: int = 16,
) -> Occlusion:
    """Takes regions of an image away, one at a time, and looks at the logit of a word.

    The prompt and the answer up to the word are processed again, with everything that acted when the maps were
    recorded, so the words before stay as they are.

    Args:
        maps: of a single sample, as a recorder made them.
        word: the word, or the number of a row, as in `maps[word]`.
        image: which image, where there are several.
        by: `"keys"` hides the keys of a region's patches from all other positions; `"pixels"` paints the region in the
            picture's mean colour, which needs the picture.
        cells: side of a region in patches of the finest level; None makes at most 12 x 12 regions.
        batch: regions per forward pass.

    Returns:
        The drop of the logit by region, beside the attention.

    Raises:
        LvlmAttnError: if the word has no row, or the model, the inputs or the picture are not at hand.

    Example:
        >>> check = lvlm.maps.occlude("dog")  # doctest: +SKIP
        >>> check.correlation  # does attention point where the evidence is?  # doctest: +SKIP
        0.61
    """
    maps._lone("occlude")
    if maps.live is None:
        raise LvlmAttnError(
            "Occlusion runs the model again, and these maps were read from a file or made by hand; record them anew."
        )
    if by not in ("keys", "pixels"):
        raise LvlmAttnError(f"by={by!r} must be 'keys' or 'pixels'.")
    if batch < 1 or (cells is not None and cells < 1):
        raise LvlmAttnError(f"batch={batch} and cells={cells} must be at least 1.")
    model = maps.live.need_model("Occlusion")
    chosen = maps[word]
    number = choose_image(maps, image)
    if maps.layout.grids[0][number].is_video:
        raise UnsupportedError(
            f"Occlusion: videos: regions are cut in one picture, and image {number} is a video; choose another image, "
            f"or pass single frames as images."
        )
    regions = Regions.of(maps, number, cells)
    runner = Runner(maps, chosen.targets[0].tolist(), model, number)
    hidden: list[Sequence[int]] = [[], *regions.positions]
    logits: list[float] = []
    for start in range(0, len(hidden), batch):
        part = hidden[start : start + batch]
        if by == "keys":
            logits += runner.without_keys(part)
        else:
            boxes = [None, *regions.boxes][start : start + batch]
            logits += runner.without_pixels(map_image(maps, number), boxes)
    drop = np.array([logits[0] - value for value in logits[1:]]).reshape(regions.shape)
    mean = chosen.mean()
    attention = np.array([mean[list(places)].sum() for places in regions.positions]).reshape(regions.shape)
    text = word[0] if isinstance(word, tuple) else str(word)
    if isinstance(word, int):
        text = "".join(chosen.tokens).strip()
    known = maps.images[0][number] if maps.images else MapImage()
    return Occlusion(
        text, drop, logits[0], attention, rank_correlation(attention, drop), by, known, maps.view_name
    )
