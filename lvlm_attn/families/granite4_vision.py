"""Granite 4 Vision: LLaVA-NeXT's base block and tiles, with fewer tokens each, and features added in several layers.

Windows of a Q-Former shrink the `image_size / patch_size` places of a tile by `downsample_rate`. The embeddings of
image tokens are zero where the decoder begins; each of several layers adds features of its own before it runs, so
what enters a layer (`observe`) has them. A token begins as the mean of the places of its cell and attends to its whole
window (published: 8 x 8 places for 3 x 3 tokens), so its cell in the picture is where it begins, not all it has seen.
Source: `Granite4VisionModel` of transformers 5.23; nothing was run on published weights.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family
from lvlm_attn.families.llava_next import grids

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
