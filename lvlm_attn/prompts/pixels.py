"""The pixels of single images, cut out of a batch and put together again, in every family's form.

LLaVA has one `(channels, height, width)` per image; any-resolution families one `(tiles, channels, height,
width)`, padded to the most tiles of the batch, and `image_sizes`; InternVL and others the tiles of all images one
after another; Idefics3 the tiles of all images of a row, padded with zeros to the most of any row; Qwen-VL the
flattened patches of all images one after another, and `image_grid_thw`; Molmo 2 the crops of all images one after
another, how many each has, and for each image token the patches that it pools, counted through the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import PromptLayout

SIZES = ("image_sizes", "image_grid_thw", "image_grids", "image_num_crops")
ENTRIES = ("pixel_attention_mask", "spatial_shapes", "image_position_ids")
"""Inputs with one entry for each of `pixel_values`."""
POOLING = "image_token_pooling"
"""`(image tokens, window)`: which patches of the batch a token pools, -1 for none."""
IMAGE_KEYS = ("pixel_values", *SIZES, *ENTRIES, POOLING, "batch_num_images")


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the model takes it.

    Attributes:
        pixels: `(tiles, channels, height, width)`, or `(patches, values)` in Qwen-VL.
        sizes: its entry of `image_sizes` or `image_grid_thw`, by that name.
        is_stacked: whether the batch has a dimension of its own for tiles.
        is_nested: whether the batch has a row of tiles for each prompt.
        entries: what else the model takes for each of `pixels`, by name; patches that tokens pool are counted from its
            own first one.
        is_alone: whether it is the only image of its prompt, where the family tells the model so.
    """

    pixels: Tensor
    sizes: Mapping[str, Tensor]
    is_stacked: bool = False
    is_alone: bool = True
    is_nested: bool = False
    entries: Mapping[str, Tensor] = field(default_factory=dict)

    def same_as(self, other: Picture) -> bool:
        """Whether the encoder would make the same features of both."""
        if self is other:
            return True
        mine, others = ({**item.sizes, **item.entries, "pixels": item.pixels} for item in (self, other))
        if self.is_alone != other.is_alone or mine.keys() != others.keys():
            return False
        pairs = [(mine[key], others[key]) for key in mine]
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def split_pictures(inputs: Mapping[str, Tensor], layout: PromptLayout) -> list[list[Picture]]:
    """The images of each row, in prompt order; videos are `lvlm_attn.prompts.videos.split_videos`.

    Args:
        inputs: what the model takes.
        layout: of the same prompts.

    Raises:
        LvlmAttnError: if the pixels are not those of the prompts' images.
    """
    counts = [sum(not grid.is_video for grid in grids) for grids in layout.grids]
    values = inputs.get("pixel_values")
    total = sum(counts)
    if values is None or total == 0:
        return [[] for _ in counts]
    is_nested = values.dim() == 5 and not any(key in inputs for key in SIZES)
    own = {key: inputs[key] for key in ("pixel_values", *ENTRIES) if key in inputs}
    if is_nested:
        own = {key: _unnested(value, layout) for key, value in own.items()}
        values = own["pixel_values"]
    given = [len(inputs[key]) for key in SIZES if key in inputs]
    if any(number != total for number in given):
        raise LvlmAttnError(
            f"The prompts hold {total} images, but the sizes of {given[0]} are given; build ids and images with "
            f"one processor call."
        )
    lengths = _lengths(inputs, values, layout, total)
    if sum(lengths) != len(values):
        raise LvlmAttnError(
            f"The prompts hold {total} images, which take {sum(lengths)} entries of pixel_values, but there are "
            f"{len(values)}; build ids and images with one processor call."
        )
    is_stacked = values.dim() == 5
    split = {key: torch.split(value, lengths) for key, value in own.items()}
    if POOLING in inputs:
        split[POOLING] = _windows(inputs[POOLING], split["pixel_values"], layout)
    pieces = [piece.squeeze(0) if is_stacked else piece for piece in split.pop("pixel_values")]
    alone = [count == 1 or "batch_num_images" not in inputs for count in counts for _ in range(count)]
    flat = [
        Picture(
            piece,
            {key: inputs[key][place] for key in SIZES if key in inputs},
            is_stacked,
            alone[place],
            is_nested,
            {key: parts[place] for key, parts in split.items()},
        )
        for place, piece in enumerate(pieces)
    ]
    taken = iter(flat)
    return [[next(taken) for _ in range(count)] for count in counts]


def join_pictures(rows: Sequence[Sequence[Picture]], *, counts: bool = False) -> dict[str, Tensor]:
    """What the model takes for the images of some rows; nothing if there is none.

    Args:
        rows: the images of each row.
        counts: whether to add `batch_num_images`.
    """
    flat = [picture for row in rows for picture in row]
    if not flat:
        return {}
    pixels = [picture.pixels for picture in flat]
    if flat[0].is_stacked:
        tiles = max(len(item) for item in pixels)
        padded = [torch.nn.functional.pad(item, (0, 0) * 3 + (0, tiles - len(item))) for item in pixels]
        inputs = {"pixel_values": torch.stack(padded)}
    elif flat[0].is_nested:
        inputs = {"pixel_values": _nested([[picture.pixels for picture in row] for row in rows])}
    else:
        inputs = {"pixel_values": torch.cat(pixels)}
    for key in flat[0].entries:
        if key == POOLING:
            inputs[key] = _through_batch([picture.entries[key] for picture in flat], pixels)
            continue
        tensors = [[picture.entries[key] for picture in row] for row in rows]
        inputs[key] = (
            _nested(tensors) if flat[0].is_nested else torch.cat([one for row in tensors for one in row])
        )
    for key in flat[0].sizes:
        inputs[key] = torch.stack([picture.sizes[key] for picture in flat])
    if counts:
        inputs["batch_num_images"] = torch.tensor([len(row) for row in rows], device=pixels[0].device)
    return inputs


def _windows(pooling: Tensor, pixels: Sequence[Tensor], layout: PromptLayout) -> tuple[Tensor, ...]:
    """The windows of each image's tokens, with patches counted from the image's first one."""
    tokens = [grid.patches for grids in layout.grids for grid in grids]
    if sum(tokens) != len(pooling):
        raise LvlmAttnError(
            f"The prompts hold images of {sum(tokens)} tokens, but {POOLING} is given for {len(pooling)}; build ids "
            f"and images with one processor call."
        )
    return tuple(
        torch.where(part >= 0, part - first, part)
        for part, first in zip(torch.split(pooling, tokens), _first_patches(pixels))
    )


def _through_batch(windows: Sequence[Tensor], pixels: Sequence[Tensor]) -> Tensor:
    """The windows of all images one after another, with patches counted through the batch."""
    pairs = zip(windows, _first_patches(pixels))
    return torch.cat([torch.where(part >= 0, part + first, part) for part, first in pairs])


def _first_patches(pixels: Sequence[Tensor]) -> list[int]:
    """How many patches come before those of each image, `(crops, patches, values)`."""
    counts = [part.shape[0] * part.shape[1] for part in pixels]
    return [sum(counts[:place]) for place in range(len(counts))]


def _unnested(values: Tensor, layout: PromptLayout) -> Tensor:
    """`(tiles, ...)` of all rows one after another, from `(batch, most tiles, ...)`."""
    counts = [sum(len(grid.blocks) for grid in grids) for grids in layout.grids]
    return torch.cat([row[:count] for row, count in zip(values, counts)])


def _nested(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """`(batch, most tiles, ...)` from the tiles of each image of each row, padded with zeros."""
    first = next(piece for row in rows for piece in row)
    most = max(sum(map(len, row)) for row in rows)
    padded = first.new_zeros(len(rows), most, *first.shape[1:])
    for place, row in enumerate(rows):
        if row:
            tiles = torch.cat(list(row))
            padded[place, : len(tiles)] = tiles
    return padded


def _lengths(inputs: Mapping[str, Tensor], values: Tensor, layout: PromptLayout, total: int) -> list[int]:
    """How many entries of `pixel_values` each image takes."""
    if "image_grid_thw" in inputs:
        return [int(number) for number in inputs["image_grid_thw"].prod(-1).tolist()]
    if "image_num_crops" in inputs:
        return [int(number) for number in inputs["image_num_crops"].tolist()]
    if len(values) == total:
        return [1] * total
    return [len(grid.blocks) for grids in layout.grids for grid in grids if not grid.is_video]
