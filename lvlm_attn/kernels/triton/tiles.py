"""Tile sizes of the Triton kernels, by kind of device, head size and type: data, checked ahead of time.

The tiles for sm_80 and sm_90 start from those PyTorch's FlexAttention ships as defaults for the same chips
(torch/_inductor, flex attention configurations); they are held to the shared memory of the chip, and on sm_90 to
no spills at head sizes 64 and 128, by ahead-of-time compilation in `tests/kernels/test_aot.py`.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Chip = Literal["sm_90", "sm_80", "small", "cdna", "cpu"]

SHARED_MEMORY: dict[Chip, int] = {
    "sm_90": 227 * 1024,
    "sm_80": 163 * 1024,
    "small": 99 * 1024,
    "cdna": 64 * 1024,
}
"""Most bytes of shared memory that one block may use: Hopper and later, A100, other NVIDIA chips, AMD's CDNA 3."""


MAX_SPLITS = 64


class Tile(NamedTuple):
    """Shape of a tile and how it is run: queries, keys, warps, depth of the load pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


# By padded head size, for 16-bit types and for fp32.
_PREFILL: dict[Chip, dict[tuple[int, int], Tile]] = {
    "sm_90": {
        (64, 2): Tile(128, 64, 8, 3),
        (128, 2): Tile(128, 64, 8, 3),
        (256, 2): Tile(64, 32, 4, 3),
        (64, 4): Tile(32, 16, 4, 2),
        (128, 4): Tile(16, 16, 4, 2),
        (256, 4): Tile(16, 16, 4, 2),
    },
    "sm_80": {
        (64, 2): Tile(128, 64, 8, 3),
        (128, 2): Tile(128, 64, 8, 3),
        (256, 2): Tile(64, 32, 8, 2),
        (64, 4): Tile(32, 16, 4, 2),
        (128, 4): Tile(16, 16, 4, 1),
        (256, 4): Tile(16, 16, 4, 2),
    },
    "small": {
        (64, 2): Tile(128, 64, 8, 2),
        (128, 2): Tile(64, 64, 4, 2),
        (256, 2): Tile(32, 32, 4, 2),
        (64, 4): Tile(32, 16, 4, 2),
        (128, 4): Tile(16, 16, 4, 2),
        (256, 4): Tile(16, 16, 4, 2),
    },
    "cdna": {
        (64, 2): Tile(128, 64, 4, 2),
        (128, 2): Tile(128, 64, 4, 1),
        (256, 2): Tile(64, 32, 4, 1),
        (64, 4): Tile(32, 16, 4, 1),
        (128, 4): Tile(16, 16, 4, 1),
        (256, 4): Tile(16, 16, 4, 1),
    },
}


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head is padded to inside a tile.

    Example:
        >>> padded_head_dim(80)
        128
    """
    return max(16, 1 << (head_dim - 1).bit_length())


def chip_of(tensor: Tensor) -> Chip:
    """The kind of device a tensor lies on; `"cpu"` is the interpreter, which likes few, large tiles."""
    return _device(tensor.device)[0] if tensor.is_cuda else "cpu"


def processors_of(tensor: Tensor) -> int:
    """Multiprocessors of the device a tensor lies on."""
    return _device(tensor.device)[1] if tensor.is_cuda else 4


@cache
def _device(device: torch.device) -> tuple[Chip, int]:
    properties = torch.cuda.get_device_properties(device)
    chip: Chip = "small"
    if torch.version.hip is not None:
        chip = "cdna"
    else:
        memory = getattr(properties, "shared_memory_per_block_optin", 0)
        chips: tuple[Chip, ...] = ("sm_90", "sm_80")
        chip = next((name for name in chips if memory >= SHARED_MEMORY[name]), "small")
    return chip, int(properties.multi_processor_count)


def prefill_tile(chip: Chip, head_dim: int, itemsize: int) -> Tile:
    """The tile of the kernel that computes every row.

    Args:
        chip: kind of device.
        head_dim: width of a head, at most 256.
        itemsize: bytes per number.
    """
    if chip == "cpu":
        return Tile(128, 128, 4, 1)
    return _PREFILL[chip][max(64, padded_head_dim(head_dim)), itemsize]


def split_tile(chip: Chip, head_dim: int, itemsize: int, rows: int, slots: int = 1) -> Tile:
    """The tile of the kernels that compute some rows, or correct them.

    Args:
        chip: kind of device.
        head_dim: width of a head, at most 256.
        itemsize: bytes per number.
        rows: rows that share keys, copies included: rows times the query heads per key head, times `slots`.
        slots: copies of a row.
    """
    wide = padded_head_dim(head_dim)
    if itemsize == 4 and chip != "cpu":  # no tensor cores: large tiles spill
        return Tile(16, 32 if wide < 64 else 16, 4, 1 if chip == "cdna" or wide == 64 else 2)
    most = 64 if wide <= 64 or (wide == 128 and chip == "sm_90" and slots == 1) or chip == "cpu" else 32
    block_m = min(most, max(16, 1 << (rows - 1).bit_length()))
    return Tile(block_m, 64 if wide <= 128 else 32, 4, _SPLIT_STAGES[chip])


def correct_tile(chip: Chip, head_dim: int, itemsize: int, rows: int) -> Tile:
    """The tile of the kernel that corrects rows: few keys, and two sums of a row beside its accumulator."""
    tile = split_tile(chip, head_dim, itemsize, rows, slots=2)
    stages = 1 if itemsize == 4 and padded_head_dim(head_dim) <= 64 else min(tile.stages, 2)
    return tile._replace(block_n=min(tile.block_n, 32), stages=stages)


_SPLIT_STAGES: dict[Chip, int] = {"sm_90": 3, "sm_80": 2, "small": 2, "cdna": 1, "cpu": 1}


def choose_splits(programs: int, columns: int, processors: int, block_n: int) -> int:
    """How many parts the keys are split into.

    Two blocks run on a multiprocessor at a time. The fewest splits are taken that keep the last wave of blocks
    within 5 % of the fullest there is. No split is shorter than 4 tiles, or, where these are too few to fill the
    device (query heads that share few key heads), than 2.

    Args:
        programs: blocks there are for each split.
        columns: keys in the cache.
        processors: multiprocessors of the device.
        block_n: keys in a tile.

    Example:
        >>> choose_splits(32, 2900, 132, 64)  # 32 heads, 132 multiprocessors: 8 x 32 blocks run at once
        8
    """
    return _splits(programs, columns // block_n, -(-columns // block_n), 2 * processors)


@cache
def _splits(programs: int, whole: int, blocks: int, places: int) -> int:
    most = whole // 4
    if programs * most < places:
        most = whole // 2
    most = max(min(MAX_SPLITS, most), 1)
    filled = [programs * splits / places for splits in range(1, most + 1)]
    efficiency = [waves / -(-waves // 1) for waves in filled]
    chosen = next(i + 1 for i, value in enumerate(efficiency) if value >= 0.95 * max(efficiency))
    blocks = max(blocks, 1)
    return -(-blocks // -(-blocks // chosen))  # whole tiles, none of them empty
