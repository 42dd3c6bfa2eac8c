"""Grids of videos in models with multimodal rotary positions: Qwen-VL and GLM-V.

One token shows `temporal_patch_size` frames, so a video of `video_grid_thw = (t, h, w)` patches takes `t` blocks of
`h/merge * w/merge` tokens. Qwen2-VL and Qwen2.5-VL write them one after another; their positions in time are apart as
the frames are, and may coincide where frames follow one another quickly. Qwen3-VL, Qwen3.5 and GLM write each block by
itself, with words for its time around it, and give it positions as to an image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.family import ImageInputs, encoded_features, image_token_id
from lvlm_attn.families.mrope import Size, axes_of, told_sizes
from lvlm_attn.families.tiles import Run, runs_of
from lvlm_attn.families.videos import video_token_id
from lvlm_attn.layout.grids import ImageGrid, video_grid

_PLAIN = (
    "The videos of this prompt would silently get plain text positions instead of frames, rows and columns; "
    "pass mm_token_type_ids and video_grid_thw as the processor returns them"
)
_REMEDY = "build ids and videos with one processor call, and pass prefill_chunk_size=None"


def whole_videos(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each video, in families that write it in one run of tokens; see `_grids`."""
    return _grids(image_inputs, video_token_id(image_inputs.config), is_split=False)


def split_videos(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each video, in families that write its blocks apart; see `_grids`."""
    return _grids(image_inputs, video_token_id(image_inputs.config), is_split=True)


def videos_as_images(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One grid for each video, in families that write its blocks apart, with the id of images; see `_grids`."""
    return _grids(image_inputs, image_token_id(image_inputs.config), is_split=True)


def _grids(image_inputs: ImageInputs, token: int | None, *, is_split: bool) -> list[ImageGrid]:
    """The grids of all videos, from `video_grid_thw` or from the rotary positions.

    Raises:
        LvlmAttnError: if the tokens of the frames are not as many as the videos take, or have plain positions or
            those of other sizes.
    """
    frames = int(image_inputs.config.vision_config.temporal_patch_size)
    sizes = told_sizes(image_inputs, "video_grid_thw")
    axes = axes_of(image_inputs, sizes, _PLAIN)
    groups = _by_video(runs_of(image_inputs, token), _lengths(image_inputs, sizes), is_split)
    if axes is None:
        return [video_grid(*size, frames=frames) for size in sizes or ()]
    found = [_size_of(axes, group) for group in groups]
    for group, size, told in zip(groups, found, sizes or found):
        where = f"row {group[0].row}, from position {group[0].start}"
        if size is None:
            raise LvlmAttnError(f"{_PLAIN} ({where}).")
        if size != told:
            raise LvlmAttnError(
                f"A video ({where}) has rotary positions that span {size} (frames, rows, columns) where video_grid_thw "
                f"says {told}; {_REMEDY}."
            )
    return [video_grid(*size, frames=frames) for size in found if size is not None]


def _lengths(image_inputs: ImageInputs, sizes: list[Size] | None) -> list[int]:
    """How many tokens each video takes."""
    if sizes is not None:
        return [count * rows * cols for count, rows, cols in sizes]
    features = encoded_features(image_inputs, "video")
    if features is None:
        raise LvlmAttnError(
            f"The prompt holds frames of videos, but neither video_grid_thw nor video features; {_REMEDY}."
        )
    return [len(feature) for feature in features]


def _by_video(runs: list[Run], lengths: list[int], is_split: bool) -> list[list[Run]]:
    """The runs of each video: one, or as many as it has blocks.

    Raises:
        LvlmAttnError: if the runs are not those of videos of so many tokens.
    """
    groups: list[list[Run]] = []
    left = list(runs)
    for number, length in enumerate(lengths):
        group: list[Run] = []
        while left and sum(run.tokens for run in group) < length and (is_split or not group):
            group.append(left.pop(0))
        tokens = sum(run.tokens for run in group)
        if tokens != length or len({run.row for run in group}) != 1:
            raise LvlmAttnError(
                f"Video {number} takes {length} tokens, but {tokens} stand for it in the prompt; {_REMEDY}."
            )
        groups.append(group)
    if left:
        raise LvlmAttnError(
            f"Row {left[0].row} of the prompt has {left[0].tokens} more tokens of frames than its videos take "
            f"({len(lengths)} given for the batch); {_REMEDY}."
        )
    return groups


def _size_of(axes: Tensor, group: list[Run]) -> Size | None:
    """Blocks, rows and columns of a video from the positions `(3, batch, length)` of its runs, or None."""
    sizes = {_size_of_run(axes[:, run.row, run.start : run.stop]) for run in group}
    size = sizes.pop()
    if size is None or sizes:
        return None
    return size if len(group) == 1 else ((len(group), *size[1:]) if size[0] == 1 else None)


def _size_of_run(axes: Tensor) -> Size | None:
    """Blocks, rows and columns that `(3, tokens)` positions span, or None if they fill no grid.

    Rows and columns count up within each block; time is the same within a block and never goes back.
    """
    time, row, col = axes - axes[:, :1]
    rows, cols = int(row.max()) + 1, int(col.max()) + 1
    count, rest = divmod(axes.shape[1], rows * cols)
    if rest or int(row.min()) < 0 or int(col.min()) < 0:
        return None
    place = torch.arange(axes.shape[1], device=axes.device)
    is_grid = torch.equal(row, place // cols % rows) and torch.equal(col, place % cols)
    times = time.view(count, rows * cols)
    is_time = torch.equal(times, times[:, :1].expand_as(times)) and bool((times.diff(dim=0) >= 0).all())
    return (count, rows, cols) if is_grid and is_time else None
