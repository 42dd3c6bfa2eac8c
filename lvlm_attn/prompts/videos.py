"""The videos of single prompts, cut out of a batch and put together again.

LLaVA's kin has `(videos, frames, channels, height, width)`; Qwen-VL and GLM the flattened patches of all videos one
after another, `video_grid_thw`, and in Qwen2.5-VL `second_per_grid_ts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import PromptLayout

PIXELS = "pixel_values_videos"
ENTRIES = ("video_grid_thw", "second_per_grid_ts")
"""Inputs with one entry for each video."""
VIDEO_KEYS = (PIXELS, *ENTRIES)


@dataclass(frozen=True, eq=False)
class Video:
    """One video as the model takes it.

    Attributes:
        pixels: `(frames, channels, height, width)`, or `(patches, values)` in Qwen-VL.
        entries: its entry of what else the model takes for videos, by name.
    """

    pixels: Tensor
    entries: Mapping[str, Tensor] = field(default_factory=dict)


def split_videos(inputs: Mapping[str, Tensor], layout: PromptLayout) -> list[list[Video]]:
    """The videos of each row, in prompt order.

    Args:
        inputs: what the model takes.
        layout: of the same prompts.

    Raises:
        LvlmAttnError: if the pixels are not those of the prompts' videos.
    """
    counts = [sum(grid.is_video for grid in grids) for grids in layout.grids]
    values = inputs.get(PIXELS)
    if values is None or not any(counts):
        return [[] for _ in counts]
    entries = {key: torch.as_tensor(inputs[key]) for key in ENTRIES if key in inputs}
    sizes = entries.get("video_grid_thw")
    lengths = [1] * len(values) if sizes is None else [int(number) for number in sizes.prod(-1).tolist()]
    given = [len(lengths), *map(len, entries.values())]
    if any(number != sum(counts) for number in given) or sum(lengths) != len(values):
        raise LvlmAttnError(
            f"The prompts hold {sum(counts)} videos, but {PIXELS} and what is beside it are of {given} with "
            f"{len(values)} entries; build ids and videos with one processor call."
        )
    pieces = torch.split(values, lengths)
    flat = iter(
        Video(piece[0] if sizes is None else piece, {key: values[place] for key, values in entries.items()})
        for place, piece in enumerate(pieces)
    )
    return [[next(flat) for _ in range(count)] for count in counts]


def join_videos(rows: Sequence[Sequence[Video]]) -> dict[str, Tensor]:
    """What the model takes for the videos of some rows; nothing if there is none.

    Args:
        rows: the videos of each row.
    """
    flat = [video for row in rows for video in row]
    if not flat:
        return {}
    pixels = [video.pixels for video in flat]
    joined = torch.cat(pixels) if "video_grid_thw" in flat[0].entries else torch.stack(pixels)
    return {PIXELS: joined} | {
        key: torch.stack([video.entries[key] for video in flat]) for key in flat[0].entries
    }
