"""Gemma 4: images of any resolution, attending to themselves both ways in sliding layers alone.

An image of `h x w` patches is averaged to `h/k x w/k` tokens between a start and an end marker. `generate` tells how
many tokens an image takes, not how they are arranged, so their rows and columns are open here; maps, which know the
picture, work them out from its size (`fit`). The larger models (`use_bidirectional_attention="vision"`) let images
attend to themselves in their sliding layers; full layers, and the smaller models, are causal. Some layers attend with
keys and values of an earlier one.
"""

from __future__ import annotations

import math
from typing import Any

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, TextMask
from lvlm_attn.families.fits import Fit
from lvlm_attn.families.tiles import runs_of, unplaced
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One image for each run of image tokens."""
    return [unplaced([run.tokens]) for run in runs_of(image_inputs)]


def fit(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Fit:
    """The largest picture of whole tokens, in the shape of the given one, that takes at most `max_soft_tokens`.

    A picture thinner than a token is one row or column of as many tokens as it is long in its own widths.
    Source: the image processor of transformers 5.23.

    Example:
        >>> from types import SimpleNamespace as Settings
        >>> images = Settings(patch_size=16, pooling_kernel_size=3, max_soft_tokens=280, do_resize=True)
        >>> fit(ImageGrid(()), (640, 480), None, images).whole
        (14, 19)
    """
    width, height = size
    token = images.patch_size * images.pooling_kernel_size
    if not images.do_resize:
        return Fit((0, 0), (height // token, width // token))
    scale = math.sqrt(images.max_soft_tokens * token**2 / (height * width))
    rows, cols = int(scale * height / token), int(scale * width / token)
    if rows == 0:
        rows, cols = 1, min(width // height, images.max_soft_tokens)
    elif cols == 0:
        rows, cols = min(height // width, images.max_soft_tokens), 1
    return Fit((0, 0), (rows, cols))


def text_mask(config: Any) -> TextMask:
    """Causal, or open within images.

    Raises:
        UnsupportedError: if all tokens attend to all others.
    """
    kind = config.get_text_config().use_bidirectional_attention
    if kind == "all":
        raise UnsupportedError(
            "This Gemma 4 configuration has use_bidirectional_attention='all', which makes an encoder of the decoder; "
            "use a model that generates."
        )
    return "bidirectional_images" if kind == "vision" else "causal"


FAMILY = Family(
    name="gemma4",
    title="Gemma 4",
    grids=grids,
    remarks="Any resolution, rows and columns open; images attend to themselves both ways in sliding layers.",
    examples=("google/gemma-4-e2b-it",),
    text_mask=text_mask,
    token_types="mm_token_type_ids",
    has_grid=False,
    fit=fit,
    encoder=False,
    modules_fit=False,
)
