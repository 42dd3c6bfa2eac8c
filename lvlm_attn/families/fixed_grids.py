"""Families in which every image takes the same grid: it has to be that of what was encoded."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.family import Family, ImageInputs, image_features
from lvlm_attn.layout.grids import ImageGrid
from lvlm_attn.layout.prompt import PromptLayout


def refuse_other_grids(family: Family, image_inputs: ImageInputs, layout: PromptLayout) -> None:
    """Refuses grids of which several, or a part of one, would stand for one image.

    Args:
        family: the model's family.
        image_inputs: what the layout was made of: all of a prompt, no chunk of it.
        layout: the layout.

    Raises:
        LvlmAttnError: if the encoder gave images of other lengths, or as many pixels as other images.
    """
    grids = [grid for row in layout.grids for grid in row]
    if not grids or not (family.grid_is_fixed or _are_repeated(grids)):
        return
    count, sizes = len(grids), {grid.tokens for grid in grids}
    said = f"The grids of {family.title} say {count} image(s) of {grids[0].tokens} tokens each, and the model was given"
    remedy = "the family's `grids` has to give the grid that each of them takes"
    features, pixels = image_features(image_inputs), image_inputs.call.get("pixel_values")
    if features is not None:
        others = sorted({len(feature) for feature in features} - sizes)
        if others:
            raise LvlmAttnError(f"{said} images of {others[0]}; {remedy}.")
    elif isinstance(pixels, Tensor) and pixels.dim() == 4 and len(pixels) != count:
        raise LvlmAttnError(f"{said} {len(pixels)} image(s); {remedy}.")


def _are_repeated(grids: Sequence[ImageGrid]) -> bool:
    """Whether several grids are one, as `repeat_over_tokens` gives it, in a family that does not say so."""
    return len(grids) > 1 and len(grids[0].blocks) == 1 and all(grid is grids[0] for grid in grids)
