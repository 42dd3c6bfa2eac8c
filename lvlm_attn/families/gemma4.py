"""Gemma 4: images of any resolution, attending to themselves both ways in sliding layers alone.

An image of `h x w` patches is averaged to `h/k x w/k` tokens between a start and an end marker. `generate` tells how
many tokens an image takes, not how they are arranged, so their rows and columns are open here. The larger models
(`use_bidirectional_attention="vision"`) let images attend to themselves in their sliding layers; full layers, and the
smaller models, are causal. Some layers attend with keys and values of an earlier one.
"""

from __future__ import annotations

from typing import Any

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, TextMask
from lvlm_attn.families.tiles import runs_of, unplaced
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One image for each run of image tokens."""
    return [unplaced([run.tokens]) for run in runs_of(image_inputs)]


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
    places=False,
    encoder=False,
    modules_fit=False,
)
