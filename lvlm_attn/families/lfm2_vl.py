"""LFM2-VL: tiles after tags, then the image at its own size; most text layers are convolutions.

Tiles and thumbnail are of any size up to `max_image_tokens`. `generate` tells how many tokens each takes, not how they
are arranged, so rows and columns are open here. A single tag stands between tiles of an image, an end and a start
marker between images. Convolutions have no softmax weights and are skipped; image tokens flow through them.
"""

from __future__ import annotations

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_features
from lvlm_attn.families.tiles import grouped, runs_of, unplaced
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """Runs with a single tag between them are of one image.

    Raises:
        UnsupportedError: if runs are not the tiles that are encoded, as without image markers in the prompt.
    """
    runs = runs_of(image_inputs)
    features, pixels = image_features(image_inputs), image_inputs.call.get("pixel_values")
    encoded = features if features is not None else pixels
    if encoded is not None and len(encoded) != len(runs):
        raise UnsupportedError(
            f"The prompt has {len(runs)} runs of image tokens for {len(encoded)} tiles, so they cannot be told apart; "
            f"leave use_image_special_tokens on, and pass prefill_chunk_size=None."
        )
    return [
        unplaced([run.tokens for run in group]) for group in grouped(runs, lambda run: len(run.before) > 1)
    ]


FAMILY = Family(
    name="lfm2_vl",
    title="LFM2-VL",
    grids=grids,
    remarks="Any resolution, rows and columns open; most text layers are convolutions, which are skipped.",
    examples=("LiquidAI/LFM2-VL-1.6B", "LiquidAI/LFM2-VL-3B"),
    output_projection="out_proj",
    final_norm="embedding_norm",
    marks_between=True,
    has_grid=False,
    places=False,
    encoder=False,
)
