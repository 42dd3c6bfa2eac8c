"""Granite 4 Vision: LLaVA-NeXT's base block and tiles, with fewer tokens each, and features added in several layers.

Windows of a Q-Former shrink the `image_size / patch_size` places of a tile by `downsample_rate`. The embeddings of
image tokens are zero where the decoder begins; each of several layers adds features of its own before it runs, so
what enters a layer (`observe`) has them. A token begins as the mean of the places of its cell and attends to its whole
window (published: 8 x 8 places for 3 x 3 tokens), so its cell in the picture is where it begins, not all it has seen.
Source: `Granite4VisionModel` of transformers 5.23; nothing was run on published weights.
"""

from __future__ import annotations

from torch import Tensor

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import llava_next
from lvlm_attn.families.family import Family, ImageInputs, image_token_id
from lvlm_attn.layout.grids import ImageGrid


def grids(inputs: ImageInputs) -> list[ImageGrid]:
    """The grids of LLaVA-NeXT.

    Raises:
        UnsupportedError: if the images do not fit the tokens because `generate` repeated them for beams one by one,
            not prompt by prompt.
    """
    found = llava_next.grids(inputs)
    counts = (inputs.input_ids == image_token_id(inputs.config)).sum(1).tolist()
    sizes = [grid.tokens for grid in found]
    if sum(sizes) == sum(counts) and not _fit(sizes, counts) and _are_beams(inputs.input_ids):
        raise UnsupportedError(
            "Granite 4 Vision: transformers itself gives beams each other's pictures where a prompt holds several; "
            "pass num_beams=1, or one picture in each prompt."
        )
    return found


def _are_beams(ids: Tensor) -> bool:
    """Whether rows of token ids are prompts that stand there several times each, one after the other."""
    count = len(ids)
    return any(
        count % beams == 0 and bool((ids.view(-1, beams, ids.shape[1]) == ids[::beams, None]).all())
        for beams in range(2, count + 1)
    )


def _fit(sizes: list[int], counts: list[int]) -> bool:
    """Whether images of some sizes, in this order, take the image tokens of the rows."""
    left = list(sizes)
    for count in counts:
        while count > 0 and left:
            count -= left.pop(0)
        if count:
            return False
    return not left


FAMILY = Family(
    name="granite4_vision",
    title="Granite 4 Vision",
    grids=grids,
    remarks="As LLaVA-NeXT with fewer tokens a tile; several layers add image features, so CrossLMM is refused.",
    examples=("ibm-granite/granite-vision-4.1-4b", "ibm-granite/granite-4.0-3b-vision"),
    newline="image_newline",
    encoder=False,  # a token is a query of a window, not a patch
    modules_fit=False,  # a layer scales its attention before it adds it
    logits_divisor="logits_scaling",
    late_features=True,
)
