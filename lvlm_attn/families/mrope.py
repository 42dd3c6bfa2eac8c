"""Grids of models with multimodal rotary positions (M-RoPE), which the Qwen-VL families share.

The encoder merges `spatial_merge_size^2` patches into one token, so an image of `image_grid_thw = (t, h, w)`
patches takes `t * h/merge * w/merge` tokens in row-major order. Each token is placed at three positions, for
time, height and width, which start at the same number (https://arxiv.org/abs/2409.12191, section 2.1). Where
the sizes are not given, the positions tell them; where they are, the positions prove that the model got them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.family import ImageInputs, image_runs, image_token_id
from lvlm_attn.layout.grids import Block, ImageGrid

_PLAIN = (
    "The images of this prompt would silently get plain text positions instead of rows and columns; "
    "pass mm_token_type_ids and image_grid_thw as the processor returns them"
)

Size = tuple[int, int, int]
"""Frames, rows and columns."""


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each run of image tokens, from `image_grid_thw` or from the rotary positions.

    Raises:
        LvlmAttnError: if the image tokens have plain positions, or positions of other sizes.
        UnsupportedError: if a chunk of the prompt ends inside an image.
    """
    runs = image_runs(image_inputs.input_ids, image_token_id(image_inputs.config))
    sizes = told_sizes(image_inputs, "image_grid_thw")
    axes = axes_of(image_inputs, sizes, _PLAIN)
    if axes is None:
        return [grid_of_size(*size) for size in sizes or ()]
    found = [_size_from_positions(axes[:, row, start:stop]) for row, start, stop in runs]
    for (row, start, stop), size, place in zip(runs, found, sizes or found):
        if size is None and stop == image_inputs.input_ids.shape[1]:
            raise UnsupportedError(
                f"The prompt ends inside an image of row {row}, whose grid cannot be told from its first "
                f"{stop - start} tokens; pass prefill_chunk_size=None."
            )
        if size is None:
            raise LvlmAttnError(f"{_PLAIN} (row {row}, {stop - start} image tokens from position {start}).")
        if size != place:
            raise LvlmAttnError(
                f"Row {row} has an image at position {start} whose rotary positions span {size} (time, rows, "
                f"columns) where image_grid_thw says {place}; build ids and images with one processor call."
            )
    return [grid_of_size(*size) for size in (sizes or found) if size is not None]


def told_sizes(image_inputs: ImageInputs, name: str) -> list[Size] | None:
    """Frames, rows and columns of tokens of each image or video, by the argument `name`; None if it is not given."""
    given = image_inputs.call.get(name)
    if given is None:
        return None
    merge = int(image_inputs.config.vision_config.spatial_merge_size)
    triples = cast("list[list[int]]", torch.as_tensor(given).tolist())
    return [(frames, height // merge, width // merge) for frames, height, width in triples]


def axes_of(image_inputs: ImageInputs, sizes: Sequence[Size] | None, plain: str) -> Tensor | None:
    """Rotary positions `(3, batch, length)` for time, rows and columns; None where the model makes them of the sizes.

    Raises:
        LvlmAttnError: `plain`, if positions are plain or will be.
    """
    axes = image_inputs.position_ids
    if axes is None:
        if sizes is None or image_inputs.call.get("mm_token_type_ids") is None:
            raise LvlmAttnError(f"{plain}.")
        return None
    if axes.dim() != 3 or axes.shape[0] < 3:
        raise LvlmAttnError(f"{plain}.")
    return axes[-3:].expand(3, image_inputs.input_ids.shape[0], -1)


def grid_of_size(frames: int, rows: int, cols: int) -> ImageGrid:
    """The grid of an image of one frame, or of `frames` frames one after another."""
    if frames == 1:
        return ImageGrid((Block(rows, cols, "base"),))
    return ImageGrid((Block(rows, cols, "frame"),) * frames)


def _size_from_positions(axes: Tensor) -> Size | None:
    """Frames, rows and columns that `(3, tokens)` positions span, or None if they fill no grid."""
    place = axes - axes[:, :1]
    size = cast("list[int]", (place.amax(1) + 1).tolist())
    frames, rows, cols = size
    if frames * rows * cols != axes.shape[1]:
        return None
    expected = torch.cartesian_prod(*(torch.arange(n, device=axes.device) for n in size)).T
    return (frames, rows, cols) if torch.equal(place, expected) else None
