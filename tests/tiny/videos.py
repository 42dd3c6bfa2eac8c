"""Prompts with videos for the tiny models, beside images or without.

A row is a tuple of what stands in it: a number of words, `"image"`, or a `Clip` of so many frames and of so many rows
and columns of tokens. Frames and grids are those that the family can take (`clip`).

    model = tiny_model("qwen2_vl")
    inputs = video_inputs("qwen2_vl", model, [(3, clip("qwen2_vl", 2), 4), (2, "image", 5), (4,)])
    model.generate(**inputs, max_new_tokens=4, do_sample=False)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from tests.tiny import KITS, _count_tokens
from tests.tiny.parts import BOS, BREAK, END, FIRST_WORD, IMAGE, PAD, START, TAG, VIDEO, VOCAB, Picture

LLAVA = ("llava_next_video", "llava_onevision")
WHOLE = ("qwen2_vl", "qwen2_5_vl")
SPLIT = ("qwen3_vl", "qwen3_5")
GLM = ("glm4v", "glm46v")
VIDEO_NAMES = (*LLAVA, *WHOLE, *SPLIT, *GLM)
GRIDS = [(2, 3), (1, 1), (3, 1), (1, 5), (4, 2)]
"""Rows and columns of tokens of a frame, in families whose frames have any size."""


@dataclass(frozen=True)
class Clip:
    """A video: how many frames (or pairs of frames) it has, and their rows and columns of tokens."""

    count: int
    rows: int
    cols: int
    seconds: float = 1.0


@dataclass
class Row:
    """One row before padding.

    Attributes:
        ids: token ids.
        image: for each token the image or video it belongs to, counted in prompt order; None at text.
        newlines: places of tokens that show no place of a frame.
        blocks: for each image or video the rows and columns of its blocks, where the test knows them.
        pictures: its images.
        clips: its videos, each with its pixels.
    """

    ids: list[int]
    image: list[int | None]
    newlines: list[int] = field(default_factory=list)
    blocks: list[list[tuple[int, int]]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    clips: list[tuple[Clip, Tensor]] = field(default_factory=list)


Item = int | str | Clip


def clip(name: str, count: int, number: int = 0, seconds: float = 1.0) -> Clip:
    """A video of a family: its frames take 2 x 2 tokens in LLaVA's kin, any grid in the others."""
    return Clip(count, 2, 2) if name in LLAVA else Clip(count, *GRIDS[number % len(GRIDS)], seconds)


def video_rows(name: str, model: Any, batch: Sequence[tuple[Item, ...]], seed: int = 0) -> list[Row]:
    """The rows of a batch."""
    return [_row(name, model, items, row, seed) for row, items in enumerate(batch)]


def video_inputs(
    name: str,
    model: Any,
    batch: Sequence[tuple[Item, ...]],
    side: Literal["left", "right"] = "left",
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keyword arguments for the model."""
    return collated(name, model, video_rows(name, model, batch, seed), side)


def _row(name: str, model: Any, items: tuple[Item, ...], number: int, seed: int) -> Row:
    generator = torch.Generator().manual_seed(1000 * seed + number + 77)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    row = Row([BOS], [None])

    def words(count: int) -> list[int]:
        return torch.randint(FIRST_WORD, VOCAB, (count,), generator=generator).tolist()

    def add(ids: list[int], image: int | None = None) -> None:
        row.ids += ids
        row.image += [image if token in (IMAGE, VIDEO) else None for token in ids]

    for item in items:
        place = len(row.blocks)
        if isinstance(item, int):
            add(words(item))
        elif isinstance(item, str):
            kit = KITS[name]
            picture = kit.picture(model.config, seed + 2 * number + place, noise)
            if not picture.tokens:
                _count_tokens(name, model, [picture])
            row.pictures.append(picture)
            row.blocks.append(picture.blocks or [])
            add([*kit.marks[0], *[IMAGE] * picture.tokens, *kit.marks[1]], place)
        else:
            row.clips.append((item, _pixels(name, item, noise)))
            row.blocks.append([(item.rows, item.cols)] * item.count)
            add(_written(name, item, words), place)
            if name == "llava_onevision":
                row.newlines.append(len(row.ids) - 1)
    return row


def _pixels(name: str, item: Clip, noise: Any) -> Tensor:
    """Frames in LLaVA's kin, else patches of 4 pixels, two frames each, `2 x 2` of them a token."""
    if name in LLAVA:
        edge = {"llava_next_video": 8, "llava_onevision": 6}[name]
        return noise(1, item.count, 3, edge, edge)
    return noise(item.count * item.rows * item.cols * 4, 3 * 2 * 4 * 4)


def _written(name: str, item: Clip, words: Any) -> list[int]:
    """The tokens of a video as its processor writes them."""
    size = item.rows * item.cols
    if name in LLAVA:
        return [VIDEO] * (item.count * size + (name == "llava_onevision"))
    if name in WHOLE:
        return [START, *[VIDEO] * (item.count * size), END]
    ids: list[int] = []
    for _ in range(item.count):
        if name in GLM:
            ids += [START, *[IMAGE] * size, END, *words(1)]
        else:
            ids += [*words(2), START, *[VIDEO] * size, END]
    return [TAG, *ids, BREAK] if name in GLM else ids


def collated(name: str, model: Any, rows: Sequence[Row], side: str = "left") -> dict[str, Tensor]:
    """Pads rows to one length and puts the pixels of all images, and of all videos, one after another."""
    length = max(len(row.ids) for row in rows)

    def padded(values: list[int], fill: int) -> list[int]:
        rest = [fill] * (length - len(values))
        return rest + values if side == "left" else values + rest

    ids = torch.tensor([padded(row.ids, PAD) for row in rows])
    mask = torch.tensor([padded([1] * len(row.ids), 0) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= KITS[name].images([row.pictures for row in rows]) | pixels_of(name, rows)
    inputs = {
        key: value.to(model.dtype) if key.startswith("pixel") else value for key, value in inputs.items()
    }
    return inputs | token_kinds(name, ids, "video_grid_thw" in inputs)


def pixels_of(name: str, rows: Sequence[Row]) -> dict[str, Tensor]:
    """What the model takes for the videos of some rows."""
    clips = [one for row in rows for one in row.clips]
    if not clips:
        return {}
    found = {"pixel_values_videos": torch.cat([pixels for _, pixels in clips])}
    if name not in LLAVA:
        found["video_grid_thw"] = torch.tensor([(c.count, 2 * c.rows, 2 * c.cols) for c, _ in clips])
    if name == "qwen2_5_vl":
        found["second_per_grid_ts"] = torch.tensor([c.seconds for c, _ in clips])
    return found


def token_kinds(name: str, ids: Tensor, are_frames: bool) -> dict[str, Tensor]:
    """`mm_token_type_ids`, where the family has them: 1 at images, 2 at videos."""
    if name in LLAVA:
        return {}
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {"mm_token_type_ids": 2 * kinds if name in GLM and are_frames else kinds}
