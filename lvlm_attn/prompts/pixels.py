"""The pixels of single images, cut out of a batch and put together again, in every family's form.

LLaVA has one `(channels, height, width)` per image; any-resolution families one `(tiles, channels, height,
width)`, padded to the most tiles of the batch, and `image_sizes`; InternVL the tiles of all images one after
another; Qwen-VL the flattened patches of all images one after another, and `image_grid_thw`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import PromptLayout

SIZES = ("image_sizes", "image_grid_thw")
IMAGE_KEYS = ("pixel_values", *SIZES, "batch_num_images")


@dataclass(frozen=True, eq=False)
class Picture:
    """One image as the model takes it.

    Attributes:
        pixels: `(tiles, channels, height, width)`, or `(patches, values)` in Qwen-VL.
        sizes: its entry of `image_sizes` or `image_grid_thw`, by that name.
        is_stacked: whether the batch has a dimension of its own for tiles.
        is_alone: whether it is the only image of its prompt, where the family tells the model so.
    """

    pixels: Tensor
    sizes: Mapping[str, Tensor]
    is_stacked: bool = False
    is_alone: bool = True

    def same_as(self, other: Picture) -> bool:
        """Whether the encoder would make the same features of both."""
        if self is other:
            return True
        if self.is_alone != other.is_alone or self.sizes.keys() != other.sizes.keys():
            return False
        pairs = [(self.pixels, other.pixels), *((self.sizes[key], other.sizes[key]) for key in self.sizes)]
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def split_pictures(inputs: Mapping[str, Tensor], layout: PromptLayout) -> list[list[Picture]]:
    """The images of each row, in prompt order.

    Args:
        inputs: what the model takes.
        layout: of the same prompts.

    Raises:
        LvlmAttnError: if the pixels are not those of the prompts' images.
    """
    counts = [len(grids) for grids in layout.grids]
    values = inputs.get("pixel_values")
    total = sum(counts)
    if values is None or total == 0:
        return [[] for _ in counts]
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
    pieces = [piece.squeeze(0) if is_stacked else piece for piece in torch.split(values, lengths)]
    alone = [count == 1 or "batch_num_images" not in inputs for count in counts for _ in range(count)]
    flat = [
        Picture(piece, {key: inputs[key][place] for key in SIZES if key in inputs}, is_stacked, alone[place])
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
    else:
        inputs = {"pixel_values": torch.cat(pixels)}
    for key in flat[0].sizes:
        inputs[key] = torch.stack([picture.sizes[key] for picture in flat])
    if counts:
        inputs["batch_num_images"] = torch.tensor([len(row) for row in rows], device=pixels[0].device)
    return inputs


def _lengths(inputs: Mapping[str, Tensor], values: Tensor, layout: PromptLayout, total: int) -> list[int]:
    """How many entries of `pixel_values` each image takes."""
    if "image_grid_thw" in inputs:
        return [int(number) for number in inputs["image_grid_thw"].prod(-1).tolist()]
    if len(values) == total:
        return [1] * total
    return [len(grid.blocks) for grids in layout.grids for grid in grids]
