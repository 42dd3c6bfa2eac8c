"""Molmo 2: the whole image, then all of it at high resolution; all images attend to one another both ways.

Both views are pooled from patches in windows. The whole image is one crop of the encoder's size; the other view is put
together of overlapping crops whose margins are left out, so it is one grid of rows and columns. The prompt shows them
as `start, rows, end, start, rows, end`; a column token stands after each row of the second view, and after those of
the first where the processor is told so. Starts, ends and columns are tokens of the image: `mm_token_type_ids` say so,
and everything they mark attends to everything they mark, whichever image it is of.

Source: Clark et al., "Molmo2" (https://allenai.org/papers/molmo2), and transformers 5.23.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import Family, ImageInputs, image_features, side
from lvlm_attn.families.fits import Fit, Rectangle
from lvlm_attn.families.tiles import Run, runs_of
from lvlm_attn.layout.grids import Block, ImageGrid

Shape = tuple[int, int]


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each image: the whole, then the view at high resolution.

    `image_grids` tell the rows and columns of both. `generate` hides them; then the encoded images tell how many
    tokens each takes, the markers where a view ends, and column tokens its rows.

    Raises:
        LvlmAttnError: if nothing tells the sizes of the images.
        UnsupportedError: if the prompt does not hold the images that are given, or if nothing tells the rows of one.
    """
    told = image_inputs.call.get("image_grids")
    features = image_features(image_inputs)
    if told is None and features is None:
        raise LvlmAttnError(
            "The prompt holds image tokens, but neither image_grids nor image features of this molmo2 model; pass all "
            "that the processor returns."
        )
    if features is not None:
        counts = [len(feature) for feature in features]
        return [_grid(_shapes(image_inputs, views)) for views in _views(image_inputs, counts)]
    shapes = [((a, b), (c, d)) for a, b, c, d in torch.as_tensor(told).tolist()]
    found = _views(image_inputs, [math.prod(low) + math.prod(high) for low, high in shapes])
    for number, (views, image) in enumerate(zip(found, shapes)):
        for view, (rows, cols) in zip(views, image):
            is_whole = len(view) == 1 and view[0].tokens == rows * cols
            if not is_whole and [run.tokens for run in view] != [cols] * rows:
                raise UnsupportedError(
                    f"Image {number} of the batch has rows of {[run.tokens for run in view]} tokens in the prompt, and "
                    f"image_grids say {rows}x{cols}; build ids and images with one processor call."
                )
    return [_grid(image) for image in shapes]


def _grid(shapes: Sequence[Shape]) -> ImageGrid:
    low, high = shapes
    return ImageGrid((Block(*low, "base"), Block(*high, "tiles")))


def _views(image_inputs: ImageInputs, counts: Sequence[int]) -> list[list[list[Run]]]:
    """For each image of so many tokens its two views, each as runs of neighbouring image tokens."""
    end, runs = image_inputs.config.image_end_token_id, iter(runs_of(image_inputs))
    found = []
    for number, count in enumerate(counts):
        views: list[list[Run]] = []
        left = count
        while left > 0 and (run := next(runs, None)) is not None:
            if not views or end in run.before:
                views.append([])
            views[-1].append(run)
            left -= run.tokens
        if left or len(views) != 2:
            raise UnsupportedError(
                f"Image {number} of the batch takes {count} tokens in two views, and the prompt has {count - left} for "
                f"it in {len(views)}; pass the processor's ids unchanged, and prefill_chunk_size=None."
            )
        found.append(views)
    if next(runs, None) is not None:
        raise LvlmAttnError(
            f"The prompt has more image tokens than its {len(counts)} images take; build ids and images with one "
            f"processor call."
        )
    return found


def _shapes(image_inputs: ImageInputs, views: Sequence[Sequence[Run]]) -> list[Shape]:
    """Rows and columns of both views of an image, where nothing but the prompt tells them."""
    low, high = views
    return [
        _by_columns(image_inputs, low) or _of_one_crop(image_inputs, low[0].tokens),
        _by_columns(image_inputs, high) or _untold(high[0].tokens),
    ]


def _by_columns(image_inputs: ImageInputs, view: Sequence[Run]) -> Shape | None:
    """Rows and columns where each row ends with a column token; None where no row does.

    Raises:
        UnsupportedError: if rows differ in length.
    """
    row, _, stop, _ = view[-1]
    ids = image_inputs.input_ids[row]
    if len(view) == 1 and (stop == len(ids) or int(ids[stop]) == image_inputs.config.image_end_token_id):
        return None
    widths = [run.tokens for run in view]
    if len(set(widths)) != 1:
        raise UnsupportedError(
            f"The rows of an image are {widths} tokens long in the prompt, where all should be alike; pass the "
            f"processor's ids unchanged."
        )
    return len(widths), widths[0]


def _of_one_crop(image_inputs: ImageInputs, tokens: int) -> Shape:
    """Rows and columns of the whole image, by the only windows that make so many tokens of the encoder's patches.

    Raises:
        UnsupportedError: if several do, or none.
    """
    vision = image_inputs.config.vision_config
    (height, width), (tall, wide) = side(vision.image_size), side(vision.patch_size)
    down, across = ({-(-edge // k) for k in range(1, edge + 1)} for edge in (height // tall, width // wide))
    found = [(rows, cols) for rows in down for cols in across if rows * cols == tokens]
    if len(found) != 1:
        raise UnsupportedError(
            f"The whole image takes {tokens} tokens, which may stand in {sorted(found)} rows and columns; make the "
            f"processor with use_single_crop_col_tokens=True, whose column tokens tell."
        )
    return found[0]


def _untold(tokens: int) -> Shape:
    raise UnsupportedError(
        f"The high-resolution view of an image is {tokens} tokens without a column token, and generate hides its rows; "
        f"make the processor with image_use_col_tokens=True, as the published models have it."
    )


def fit(grid: ImageGrid, size: tuple[int, int], config: Any, images: Any) -> Fit:
    """The picture over all of a crop, and over all of a canvas of crops, each filled up to whole windows.

    A canvas of `t` crops in a row is `t * window + margins` patches wide. A window that is not full lies half before
    and half behind the patches, an odd one behind.
    Source: the image processor of transformers 5.23.

    Raises:
        UnsupportedError: if the image processor makes no such view.
    """
    crop, margins = images.size["height"] // images.patch_size, sum(images.overlap_margins)
    low, high = ((block.rows, block.cols) for block in grid.blocks)
    covers = []
    for shape, steps in ((low, [crop]), (high, _canvases(crop, margins, images.max_crops))):
        sides = []
        for count, pool in zip(shape, images.pooling_size):
            patches = next((edge for edge in steps if -(-edge // pool) == count), None)
            if patches is None:
                raise UnsupportedError(
                    f"An image of {size[0]} x {size[1]} pixels came as {grid}, which the image processor does not "
                    f"make; use the processor that made the inputs, with its own settings."
                )
            spare = count * pool - patches
            sides.append((-(spare // 2) / patches, 1 + (spare + 1) // 2 / patches))
        (top, bottom), (left, right) = sides
        covers.append(Rectangle(left, top, right, bottom))
    return Fit(high, low, 1, 1, whole_covers=covers[0], tiles_cover=covers[1], is_whole_first=True)


def _canvases(crop: int, margins: int, most: int) -> list[int]:
    """How many patches a canvas of 1, 2, ... crops in a row is long."""
    return [count * (crop - margins) + margins for count in range(1, most + 1)]


FAMILY = Family(
    name="molmo2",
    title="Molmo 2",
    grids=grids,
    remarks="The whole image, then all of it at high resolution; images attend to all images of the prompt both ways.",
    examples=("allenai/Molmo2-4B", "allenai/Molmo2-8B", "allenai/Molmo2-O-7B"),
    marks_between=True,
    text_mask="bidirectional_vision",
    token_types="mm_token_type_ids",
    fit=fit,
    encoder=False,
    modules_fit=False,
)
