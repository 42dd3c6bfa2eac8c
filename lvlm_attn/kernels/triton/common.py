"""What the Triton kernels share: device functions that read the specs of `packing`.

Importing this module needs Triton; `lvlm_attn.kernels.dispatch` imports it only where it is used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of a tensor the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def precision(dtype: torch.dtype) -> str:
    """How `dot` multiplies numbers of a type: fp32 in full, and bf16, which the interpreter lacks, through fp32."""
    if dtype == torch.float32:
        return "ieee"
    return "upcast" if dtype == torch.bfloat16 and is_interpreted() else "tf32"


def is_interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter: `TRITON_INTERPRET=1` was set when they were imported."""
    return not isinstance(dot, triton.JITFunction)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """`a @ b + acc` in fp32; `acc` may be None. For `PRECISION` see `precision`."""
    if PRECISION == "upcast":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def row_bits(table, row_group, HAS_TABLE: tl.constexpr):
    """The entry of each row's group in `earlier_bits` or `later_bits`; -1 (all bits) without tables."""
    if HAS_TABLE:
        bits = tl.load(table + row_group)
    else:
        bits = tl.full(row_group.shape, -1, tl.int32)
    return bits


@triton.jit
def may_attend(
    row,
    key,
    row_group,
    row_earlier,
    row_later,
    key_group,
    earlier,
    later,
    window,
    GROUPS: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_LATER: tl.constexpr,
    REACHES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
):
    """`(rows, keys)` booleans from positions, groups and tables; see `PackedVisibility`.

    `row` and `key` are positions in the sequence; the caller masks columns past the last one.
    """
    distance = row[:, None] - key[None, :]
    allowed = distance >= 0
    if HAS_WINDOW:
        allowed = allowed & (distance < window)
    if HAS_TABLE:
        column = tl.maximum(key_group, 0)
        bit = (tl.full(column.shape, 1, tl.int32) << column)[None, :]
        reached = (row_earlier[:, None] & bit) != 0
        for place in tl.static_range(REACHES):
            near = tl.load(earlier + place * (1 + GROUPS) + 1 + row_group)
            reach = tl.load(earlier + place * (1 + GROUPS))
            reached = reached | (((near[:, None] & bit) != 0) & (distance <= reach))
        allowed = allowed & (reached | (distance == 0))
        if HAS_LATER:
            unlocked = (row_later[:, None] & bit) != 0
            for place in tl.static_range(REACHES):
                near = tl.load(later + place * (1 + GROUPS) + 1 + row_group)
                reach = tl.load(later + place * (1 + GROUPS))
                unlocked = unlocked | (((near[:, None] & bit) != 0) & (-distance <= reach))
            allowed = allowed | ((distance < 0) & unlocked)
    if HAS_KEYS:
        allowed = allowed & (key_group >= 0)[None, :]
    return allowed


@triton.jit
def ahead_bias(row, key, row_group, key_group, bias):
    """What a strength adds to the scores of keys ahead, `(rows, keys)`, in units of log 2."""
    column = tl.maximum(key_group, 0)
    bit = (tl.full(column.shape, 1, tl.int32) << column)[None, :]
    is_weaker = (tl.load(bias + 1 + row_group)[:, None] & bit) != 0
    added = tl.load(bias).to(tl.float32, bitcast=True)
    return tl.where((row[:, None] < key[None, :]) & is_weaker, added, 0.0)


@triton.jit
def amounts(flag, place, head_gain, is_place, HAS_HEADS: tl.constexpr):
    """How much of an amplification each row gets: 0 without its flag, else the factor of its head at `place`."""
    amount = (flag & 1).to(tl.float32)
    if HAS_HEADS:
        amount *= tl.load(head_gain + place, mask=is_place, other=0.0)
    return amount


@triton.jit
def amplify(scores, amount, gain, bias, HAS_GAIN: tl.constexpr, HAS_BIAS: tl.constexpr):
    """`s + amount * (gain * |s| + bias)`; scores and bias in units of log 2, before masking."""
    change = tl.zeros(scores.shape, tl.float32)
    if HAS_GAIN:
        change += gain[None, :] * tl.abs(scores)
    if HAS_BIAS:
        change += bias[None, :]
    # Not 0 * change, which is NaN where a bias is infinite.
    return tl.where(amount[:, None] != 0.0, scores + amount[:, None] * change, scores)


@triton.jit
def row_gains(text_sink, patch, patch_sink, removed_fraction, rho, mass_floor):
    """The factors of a redistribution from the masses of a row; see `spec.redistribution_gains`.

    Returns:
        The factor of sinks, the factor of plain patches, whether the row is changed, and the mass moved.
    """
    image = patch + patch_sink
    is_changed = (image >= mass_floor) & (patch >= rho * image) & (patch > 0)
    taken = tl.where(is_changed, removed_fraction, 0.0)
    moved = taken * (text_sink + patch_sink)
    grow = 1.0 + moved / tl.where(is_changed, patch, 1.0)
    return 1.0 - taken, grow, is_changed, moved
