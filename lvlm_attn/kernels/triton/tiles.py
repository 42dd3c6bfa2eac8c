"""Tile sizes of the Triton kernels, by kind of device, head size and type: data, checked ahead of time.

The tiles for sm_80 and sm_90 start from those PyTorch's FlexAttention ships as defaults for the same chips
(torch/_inductor, flex attention configurations); they are held to the shared memory of the chip, and on sm_90 to
no spills at head sizes 64 and 128, by ahead-of-time compilation in `tests/kernels/test_aot.py`.
"""

from __future__ import annotations

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
        (128, 4): Tile(16, 16, 4, 2),
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
    if not tensor.is_cuda:
        return "cpu"
    if torch.version.hip is not None:
        return "cdna"
    memory = getattr(torch.cuda.get_device_properties(tensor.device), "shared_memory_per_block_optin", 0)
    for chip in ("sm_90", "sm_80"):
        if memory >= SHARED_MEMORY[chip]:
            return chip
    return "small"


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


def rows_tile(chip: Chip, head_dim: int, itemsize: int, rows: int) -> Tile:
    """The tile of the kernels that compute touched rows.

    Args:
        chip: kind of device.
        head_dim: width of a head, at most 256.
        itemsize: bytes per number.
        rows: rows that share keys: touched rows times the query heads per key head.
    """
    wide = padded_head_dim(head_dim)
    if chip == "cpu":
        most, block_n = 64, 128
    elif itemsize == 4:  # no tensor cores: large tiles spill
        most, block_n = 16, 32 if wide <= 64 else 16
    else:
        most, block_n = 64 if wide <= 128 else 32, 64 if wide <= 64 else 32
    block_m = min(most, max(16, 1 << (rows - 1).bit_length()))
    return Tile(block_m, block_n, 4, 1 if chip in ("cdna", "cpu") else 2)
