"""InternVL: square tiles one after another, then a thumbnail of the image (https://arxiv.org/abs/2504.10479).

Each tile takes `(image_size / patch_size * downsample_ratio)^2` tokens. The tokens of an image stand between
a start and an end marker, which are text. The arrangement of the tiles is not among the model's inputs, so
`tile_row` and `tile_col` stay open.
"""

from __future__ import annotations

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_features, image_runs, image_token_id, side
from lvlm_attn.layout.grids import Block, ImageGrid


def tile_side(image_inputs: ImageInputs) -> tuple[int, int]:
    """Rows and columns of patches in one tile, after pixels are shuffled together."""
    config = image_inputs.config
    (height, width), (patch_height, patch_width) = (
        side(config.vision_config.image_size),
        side(config.vision_config.patch_size),
    )
    ratio = config.downsample_ratio
    return int(height // patch_height * ratio), int(width // patch_width * ratio)


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One image for each run of image tokens, cut into tiles.

    Raises:
        UnsupportedError: if a run is no whole number of tiles, as when a chunked prefill cuts it.
        LvlmAttnError: if the tiles are not as many as the encoded ones.
    """
    rows, cols = tile_side(image_inputs)
    runs = image_runs(image_inputs.input_ids, image_token_id(image_inputs.config))
    for row, start, stop in runs:
        if (stop - start) % (rows * cols):
            raise UnsupportedError(
                f"Row {row} of the prompt has {stop - start} image tokens in a run, no whole number of "
                f"{rows} x {cols} "
                "tiles; pass the processor's ids unchanged, and prefill_chunk_size=None if the prefill is "
                "chunked."
            )
    counts = [(stop - start) // (rows * cols) for _, start, stop in runs]
    features, pixels = image_features(image_inputs), image_inputs.call.get("pixel_values")
    encoded = len(features) if features is not None else len(pixels) if pixels is not None else sum(counts)
    is_chunk = features is not None and encoded == 1 and len(features[0]) == sum(counts) * rows * cols
    if encoded != sum(counts) and not is_chunk:
        raise LvlmAttnError(
            f"The prompt has image tokens for {sum(counts)} tiles in {len(counts)} images, but {encoded} "
            f"tiles are "
            "given; build the ids and the images with the same processor call."
        )
    return [grid_of_tiles(count, rows, cols) for count in counts]


def grid_of_tiles(count: int, rows: int, cols: int) -> ImageGrid:
    """An image of `count` tiles: the only one shows all of it, of several the last is the thumbnail."""
    if count == 1:
        return ImageGrid((Block(rows, cols, "base"),))
    tile = Block(rows, cols, "tile")
    return ImageGrid((*[tile] * (count - 1), Block(rows, cols, "thumbnail")))


FAMILY = Family(
    name="internvl",
    title="InternVL",
    grids=grids,
    remarks="16 x 16 patches a tile, the thumbnail last; frames of a video count as images.",
    examples=("OpenGVLab/InternVL3-1B-hf", "OpenGVLab/InternVL3-8B-hf"),
)
