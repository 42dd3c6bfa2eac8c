"""From the patches of an image encoder to the image tokens of a prompt: tiles, merged patches, window order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from transformers.image_processing_utils import select_best_resolution

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families.anyres import unpadded
from lvlm_attn.families.family import side
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.layout.prompt import PromptLayout


class VisionRows(NamedTuple):
    """Which weights of the image encoder are kept.

    Attributes:
        layer: index of a layer, counted from the end if negative.
        rows: `"class"`, the row of the class token, or the mean over all rows in encoders without one; `"all"`,
            the mean over all rows.
    """

    layer: int
    rows: Literal["class", "all"]


@dataclass
class VisionRead:
    """The weights that the patches of one encoding received, averaged over heads.

    Attributes:
        sizes: what tells the images apart: `grid_thw`, `image_sizes`, `batch_num_images`, where there are such.
        weights: for each `VisionRows`, pieces `(units, patches)` in the order of the encoder, fp32. A unit is an
            image or a tile; encoders of images of any size give one piece per image.
    """

    sizes: dict[str, Tensor]
    weights: dict[VisionRows, list[Tensor]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Encoded:
    """The weights that the patches of one image received; in InternVL those of one tile.

    Attributes:
        weights: for each `VisionRows` `(units, patches)`, fp32: the whole image first, then its tiles row by row.
        size: height and width in pixels, in families that cut images into tiles.
        tiles: rows and columns of tiles, in these families.
        window: rows and columns of image tokens in a window of the encoder, whose patches stand together; None
            where tokens stand row by row.
        merge: patches along each side of an image token, in encoders whose patches stand token by token.
    """

    weights: dict[VisionRows, Tensor]
    size: tuple[int, int] | None = None
    tiles: tuple[int, int] | None = None
    window: int | None = None
    merge: int | None = None


def entries_of(read: VisionRead, config: Any) -> tuple[Encoded, ...]:
    """Parts one encoding into its images.

    Args:
        read: what the encoder's attention gave.
        config: configuration of the model.
    """
    vision = config.vision_config
    grids = read.sizes.get("grid_thw")
    if grids is not None:
        merge = int(vision.spatial_merge_size)
        width = getattr(vision, "window_size", None)
        window = None if width is None else int(width) // merge // side(vision.patch_size)[0]
        counts = torch.as_tensor(grids).prod(1).tolist()
        flat = {
            rows: torch.cat([piece.flatten() for piece in pieces]) for rows, pieces in read.weights.items()
        }
        parts = {rows: torch.split(values, counts) for rows, values in flat.items()}
        return tuple(
            Encoded({rows: pieces[index][None] for rows, pieces in parts.items()}, window=window, merge=merge)
            for index in range(len(counts))
        )
    units = {rows: torch.cat(pieces) for rows, pieces in read.weights.items()}
    total = len(next(iter(units.values())))
    sizes = read.sizes.get("image_sizes")
    if sizes is None or not hasattr(config, "image_grid_pinpoints"):
        return tuple(
            Encoded({rows: values[i : i + 1] for rows, values in units.items()}) for i in range(total)
        )
    pairs = [(int(height), int(width)) for height, width in torch.as_tensor(sizes).tolist()]
    edge = side(vision.image_size)[0]
    best = [select_best_resolution(pair, config.image_grid_pinpoints) for pair in pairs]
    tiles: list[tuple[int, int] | None] = [(height // edge, width // edge) for height, width in best]
    per_row = read.sizes.get("batch_num_images")
    if per_row is not None:
        is_alone = [count == 1 for count in torch.as_tensor(per_row).tolist() for _ in range(count)]
        tiles = [shape if alone else None for shape, alone in zip(tiles, is_alone)]
    counts = [1 + (shape[0] * shape[1] if shape else 0) for shape in tiles]
    if sum(counts) != total:
        raise UnsupportedError(
            f"The image encoder was given {total} tiles where image_sizes tell {sum(counts)}; pass image_sizes and "
            f"pixel_values of the same processor call."
        )
    split = {rows: torch.split(values, counts) for rows, values in units.items()}
    return tuple(
        Encoded({rows: pieces[index] for rows, pieces in split.items()}, pairs[index], tiles[index])
        for index in range(len(pairs))
    )


def received(encoded: Sequence[Encoded], rows: VisionRows, layout: PromptLayout, start: int = 0) -> Tensor:
    """The weight that the image tokens of a prompt received in the encoder, the mean over their patches.

    Args:
        encoded: the images whose tokens stand at `start` or later, in flat order.
        rows: which weights.
        layout: of the prompt.
        start: where the call begins that takes these images.

    Returns:
        `(batch, length)` in fp32, 0 at positions that are no patch or stand before `start`.

    Raises:
        LvlmAttnError: if these are not the images of the prompt.
    """
    device = layout.device
    values = torch.zeros(layout.batch, layout.length, device=device)
    left = list(encoded)
    for row, grids in enumerate(layout.grids):
        for image, grid in enumerate(grids):
            is_own = layout.is_patch[row] & (layout.image[row] == image)
            is_own[:start] = False
            if not bool(is_own.any()):
                continue
            count = len(grid.blocks) if left and left[0].tiles is None and left[0].merge is None else 1
            if len(left) < count or int(is_own.sum()) != grid.patches:
                raise LvlmAttnError(_MISMATCH)
            piece = _of_image(left[:count], rows, grid)
            left = left[count:]
            values[row, is_own] = piece.to(device, values.dtype)
    if left:
        raise LvlmAttnError(_MISMATCH)
    return values


_MISMATCH = (
    "The images that were encoded are not those of the prompt; pass pixel_values and token ids of the same "
    "processor call, and an attention_mask that hides no image token."
)


def repeated_groups(entries: Sequence[Encoded], features: Sequence[Tensor]) -> tuple[Encoded, ...]:
    """Brings entries into the order of features that were repeated prompt by prompt: a, b, a, b, c, c."""
    times = len(features) // max(len(entries), 1)
    if times <= 1:
        return tuple(entries)
    ordered: list[Encoded] = []
    first = 0
    while first < len(entries):
        place = first * times
        size = next(
            size for size in range(1, len(entries) - first + 1) if _repeats(features, place, size, times)
        )
        ordered += list(entries[first : first + size]) * times
        first += size
    return tuple(ordered)


def _repeats(features: Sequence[Tensor], place: int, size: int, times: int) -> bool:
    pairs = zip(features[place : place + size * (times - 1)], features[place + size : place + size * times])
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def _of_image(entries: Sequence[Encoded], rows: VisionRows, grid: ImageGrid) -> Tensor:
    """`(patches,)` of one image in token order."""
    first = entries[0]
    if first.merge is not None:
        return _of_merged(first.weights[rows][0], first.merge, first.window, grid)
    if first.tiles is None:
        return torch.cat(
            [_pooled(entry.weights[rows][0], block) for entry, block in zip(entries, grid.blocks)]
        )
    units = first.weights[rows]
    pieces = []
    for block in grid.blocks:
        if block.kind == "tiles":
            pieces.append(_of_tiles(units[1:], block, first.tiles, cast("tuple[int, int]", first.size)))
        else:
            pieces.append(_pooled(units[0], block))
    return torch.cat(pieces)


def _pooled(unit: Tensor, block: Block) -> Tensor:
    """A square unit on the grid of a block, the mean over the patches of each token."""
    edge = round(unit.numel() ** 0.5)
    return adaptive_avg_pool2d(unit.view(1, 1, edge, edge), (block.rows, block.cols)).flatten()


def _of_tiles(units: Tensor, block: Block, tiles: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Tiles put together, their padding cut off, scaled where the model scales its features."""
    edge = round(units.shape[1] ** 0.5)
    high, wide = tiles[0] * edge, tiles[1] * edge
    joined = units.view(*tiles, edge, edge).permute(0, 2, 1, 3).reshape(high, wide)
    rows, cols = unpadded(size, high, wide)
    top, left = (high - rows) // 2, (wide - cols) // 2
    kept = joined[top : top + rows, left : left + cols]
    if kept.shape != (block.rows, block.cols):
        kept = interpolate(kept[None, None], (block.rows, block.cols), mode="bilinear")[0, 0]
    return kept.flatten()


def _of_merged(unit: Tensor, merge: int, window: int | None, grid: ImageGrid) -> Tensor:
    """Patches that stand token by token, and in encoders with windows window by window."""
    tokens = unit.view(-1, merge * merge).mean(1)
    if window is None:
        return tokens
    places = []
    for frame, block in enumerate(grid.blocks):
        row = torch.arange(block.rows).repeat_interleave(block.cols)
        col = torch.arange(block.cols).repeat(block.rows)
        frames = torch.full_like(row, frame)
        places.append(torch.stack((frames, row // window, col // window, row % window, col % window)))
    keys = torch.cat(places, 1)
    order = sorted(range(keys.shape[1]), key=lambda i: tuple(keys[:, i].tolist()))
    values = torch.empty_like(tokens)
    values[torch.tensor(order, device=tokens.device)] = tokens
    return values
