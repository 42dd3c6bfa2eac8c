"""What the Triton kernels share: the tuples they take, device functions over them, and how they are launched.

Importing this module needs Triton; `lvlm_attn.kernels.dispatch` imports it only where it is used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility, Shape
from lvlm_attn.kernels.triton.tiles import Tile, padded_head_dim

LOG_2 = 0.6931471805599453

Launch = Callable[..., Any]
"""Launches a kernel that is compiled, without a look at what it is given."""


class Mask(NamedTuple):
    """The tensors of a `PackedVisibility`; its shape is a constant of the kernel."""

    query_group: Tensor | None
    key_group: Tensor | None
    tables: Tensor | None


class Change(NamedTuple):
    """How scores change; see `PackedEdits`."""

    amplified: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    heads: Tensor | None = None


class Form(NamedTuple):
    """What a kernel is compiled for.

    Attributes:
        shape: that of the mask over groups.
        signed: whether a gain is on the score itself instead of its size.
        head_dim: width of a head.
        block_d: the power of two it is padded to.
        block_m: rows of a tile.
        block_n: keys of a tile.
        precision: how `dot` multiplies.
    """

    shape: Shape
    signed: bool
    head_dim: int
    block_d: int
    block_m: int
    block_n: int
    precision: str


class Place(NamedTuple):
    """Where queries and keys stand: numbers that change from step to step, each `hidden` from Triton.

    Attributes:
        start: position of the first query.
        first_key: position of the first key column.
        queries: number of queries.
        keys: number of key columns.
        written: how many of them hold a key.
        window: how far back a query attends, itself included, or None.
        gains: positions that `Change.gain` knows.
        biases: positions that `Change.bias` knows.
        classes: positions that `PackedEdits.key_class` knows.
    """

    start: int
    first_key: int
    queries: int
    keys: int
    written: int
    window: int | None
    gains: int
    biases: int
    classes: int


def mask_of(packed: PackedVisibility) -> Mask:
    """The tensors of a mask over groups."""
    return Mask(packed.query_group, packed.key_group, packed.tables)


def change_of(edits: PackedEdits) -> Change:
    """What changes scores."""
    return Change(edits.amplified, edits.gain, edits.bias, edits.heads)


def place_of(call: AttentionCall, edits: PackedEdits) -> Place:
    """The numbers of a call."""
    geometry = call.geometry
    known = [0 if item is None else item.shape[1] for item in (edits.gain, edits.bias, edits.key_class)]
    first = geometry.first_key
    written = min(geometry.keys, geometry.length - first)
    gains, biases, classes = map(hidden, known)
    return Place(
        start=hidden(geometry.start),
        first_key=hidden(first),
        queries=hidden(geometry.queries),
        keys=hidden(geometry.keys),
        written=hidden(written),
        window=None if geometry.window is None else hidden(geometry.window),
        gains=gains,
        biases=biases,
        classes=classes,
    )


def form_of(call: AttentionCall, packed: PackedVisibility, edits: PackedEdits, tile: Tile) -> Form:
    """What kernels of a call are compiled for."""
    dim, dtype = call.query.shape[3], call.query.dtype
    wide = padded_head_dim(dim)
    return Form(packed.shape, edits.signed, dim, wide, tile.block_m, tile.block_n, precision(dtype))


def hidden(number: int) -> int:
    """A number for which no kernel is compiled.

    Triton compiles a kernel anew for numbers that are 1 or multiples of 16, and cannot be told not to inside a tuple.
    """
    return 32 * number + 3


@triton.jit
def seen_place(place):
    """The numbers of a `Place`, as they are."""
    window = place.window
    if window is not None:
        window = window >> 5
    return Place(
        place.start >> 5,
        place.first_key >> 5,
        place.queries >> 5,
        place.keys >> 5,
        place.written >> 5,
        window,
        place.gains >> 5,
        place.biases >> 5,
        place.classes >> 5,
    )


def check_call(call: AttentionCall) -> None:
    """Refuses shapes that do not belong together, before anything is launched.

    Raises:
        LvlmAttnError: if heads do not divide by key heads, head sizes differ or exceed 256, the geometry is of
            another call, or the last dimension is not contiguous.
    """
    query, key, geometry = call.query, call.key, call.geometry
    heads, queries, dim = query.shape[1:]
    kv_heads, keys, key_dim = key.shape[1:]
    if heads % kv_heads:
        raise LvlmAttnError(f"{heads} query heads do not divide into {kv_heads} key heads; pass a multiple.")
    if dim != key_dim or dim > 256:
        raise LvlmAttnError(f"Head sizes are {dim} and {key_dim}; the kernels take equal ones up to 256.")
    if (queries, keys) != (geometry.queries, geometry.keys):
        raise LvlmAttnError(
            f"The call has {queries} queries and {keys} keys, its geometry says {geometry.queries} and "
            f"{geometry.keys}; pass the geometry of this call."
        )
    if query.stride(3) != 1 or key.stride(3) != 1:
        raise LvlmAttnError("Queries or keys are not contiguous along the head; call .contiguous() on them.")


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the device of a tensor the one that kernels are launched on."""
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


class Launcher:
    """Launches of one kernel that differ in tensors and strides alone; most skip Triton's own look-up.

    A kernel is compiled for types, for what is None, and for which tensors and strides are multiples of 16. Where all
    are, as they nearly always are, what was compiled for one launch serves the next.
    """

    def __init__(self, kernel: Any, grid: tuple[int, int, int], constants: tuple[Any, ...], **options: Any):
        self.kernel, self.grid = kernel, grid
        self.constants, self.options = constants, {"enable_fp_fusion": True} | options
        self.known: dict[int, Launch] = {}

    def __call__(
        self, tensors: tuple[Tensor | None, ...], change: Change, strides: tuple[int, ...], *rest: Any
    ) -> Launch | None:
        """Launches the kernel; `rest` is the same at every launch, or differs in floats alone.

        Returns:
            What launches it with other tensors, None where they are None now, as long as they and the strides are
            multiples of 16; None if it is to be looked up again.
        """
        bits, missing, place = 0, 0, 1
        for item in (*tensors, *change):
            if item is None:
                missing |= place
            else:
                bits |= item.data_ptr()
            place <<= 1
        for stride in strides:
            bits |= stride
        is_plain = bits & 15 == 0 and max(strides) < 2**31
        run = self.known.get(missing) if is_plain else None
        if run is not None:
            run(*tensors, change, strides, *rest, *self.constants)
            return run
        key = self._key((*tensors, *change), rest) if is_plain and not is_interpreted() else None
        compiled = _COMPILED.get(key) if key is not None else None
        if compiled is None:
            compiled = self.kernel[self.grid](
                *tensors, change, strides, *rest, *self.constants, **self.options
            )
        else:
            compiled[self.grid](*tensors, change, strides, *rest, *self.constants)
        if key is None or compiled is None:
            return None
        _COMPILED[key] = compiled
        self.known[missing] = compiled[self.grid]
        return self.known[missing]

    def _key(self, tensors: tuple[Tensor | None, ...], rest: tuple[Any, ...]) -> Hashable:
        """What a kernel is compiled for, or None where that is not all."""
        numbers = [number for item in rest for number in (item if isinstance(item, tuple) else (item,))]
        types: list[Any] = [None if item is None else item.dtype for item in tensors]
        for number in numbers:
            if isinstance(number, Tensor):
                if number.data_ptr() % 16:
                    return None
                types.append(number.dtype)
            else:
                if isinstance(number, int) and number >= 2**31:
                    return None
                types.append(type(number))
        device = next(item for item in tensors if item is not None).device
        return self.kernel.fn, self.constants, *self.options.items(), device, *types


_COMPILED: dict[Hashable, Any] = {}


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
def row_state(at, head, sample, is_row, heads, spec, F: tl.constexpr):
    """What is the same for all keys of a row: its group, the bits of groups it attends to, how much it is amplified.

    `at` is the query of the call and `head` the head that each row is of; `spec` is a `Mask`, a `Change`, a `Place`,
    and the factor on the scores in units of log 2.
    """
    mask, change, place, _ = spec
    group = tl.zeros(at.shape, tl.int32)
    earlier = tl.full(at.shape, -1, tl.int32)
    later = earlier
    if mask.query_group is not None:
        group = tl.load(mask.query_group + sample * place.queries + at, mask=is_row, other=0)
        lines = mask.tables + 2 * F.shape.groups * F.shape.groups + 1
        earlier = tl.load(lines + group)
        later = tl.load(lines + F.shape.lines * (1 + F.shape.groups) + group)
    amount = tl.zeros(at.shape, tl.float32)
    if change.amplified is not None:
        is_amplified = tl.load(change.amplified + sample * place.queries + at, mask=is_row, other=0)
        amount = is_amplified.to(tl.float32)
        if change.heads is not None:
            amount *= tl.load(change.heads + sample * heads + head + at * 0, mask=is_row, other=0.0)
    return group, earlier, later, amount


@triton.jit
def attended(row, position, state, bit, is_key, spec, F: tl.constexpr):
    """`(rows, keys)` booleans: which keys the rows attend to; `bit` is that of the group of each key."""
    mask, _, place, _ = spec
    row_group, earlier, later, _ = state
    distance = row[:, None] - position[None, :]
    allowed = distance >= 0
    if place.window is not None:
        allowed = allowed & (distance < place.window)
    if F.shape.lines > 0:
        LINES: tl.constexpr = F.shape.lines
        lines = mask.tables + 2 * F.shape.groups * F.shape.groups
        reached = (earlier[:, None] & bit[None, :]) != 0
        for line in tl.static_range(1, LINES):
            at = lines + line * (1 + F.shape.groups)
            near = tl.load(at + 1 + row_group)
            reached = reached | (((near[:, None] & bit[None, :]) != 0) & (distance <= tl.load(at)))
        allowed = allowed & (reached | (distance == 0))
        if F.shape.later:
            unlocked = (later[:, None] & bit[None, :]) != 0
            for line in tl.static_range(1, LINES):
                at = lines + (LINES + line) * (1 + F.shape.groups)
                near = tl.load(at + 1 + row_group)
                unlocked = unlocked | (((near[:, None] & bit[None, :]) != 0) & (-distance <= tl.load(at)))
            allowed = allowed | ((distance < 0) & unlocked)
    return allowed & is_key[None, :]


@triton.jit
def edited_scores(q, k, row, state, column, is_column, sample, spec, F: tl.constexpr):
    """`(rows, keys)` scores in units of log 2, minus infinity where a key is not attended to.

    `q` is `(rows, head_dim)`, `k` is `(head_dim, keys)`; `row` are positions in the sequence, `column` key columns,
    `state` comes from `row_state`. All that is read of a key is read before the product, to be there in time.
    """
    mask, change, place, scale = spec
    position = place.first_key + column
    bit = tl.full(column.shape, 1, tl.int32)
    raised = tl.zeros(column.shape, tl.float32)
    added = tl.zeros(column.shape, tl.float32)
    if mask.key_group is not None:
        group = tl.load(mask.key_group + sample * place.keys + column, mask=is_column, other=-1)
        is_column = is_column & (group >= 0)
        bit = bit << tl.maximum(group, 0)
    if change.gain is not None:
        is_known = is_column & (position < place.gains)
        raised = tl.load(change.gain + sample * place.gains + position, mask=is_known, other=0.0)
    if change.bias is not None:
        is_known = is_column & (position < place.biases)
        added = tl.load(change.bias + sample * place.biases + position, mask=is_known, other=0.0)
    scores = dot(q, k, None, F.precision) * scale
    if F.shape.strength:
        at = mask.tables + 2 * F.shape.groups * F.shape.groups + 2 * F.shape.lines * (1 + F.shape.groups)
        is_weaker = (tl.load(at + 1 + state[0])[:, None] & bit[None, :]) != 0
        weaker = tl.load(at).to(tl.float32, bitcast=True)
        scores += tl.where((row[:, None] < position[None, :]) & is_weaker, weaker, 0.0)
    if change.amplified is not None:
        size = scores if F.signed else tl.abs(scores)
        # 1.44... is log2(e).
        moved = raised[None, :] * size + added[None, :] * 1.4426950408889634
        # Not 0 * moved, which is NaN where a bias is infinite.
        amount = state[3][:, None]
        scores = tl.where(amount != 0.0, scores + amount * moved, scores)
    allowed = attended(row, position, state, bit, is_column, spec, F)
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def class_of(key_class, column, is_column, sample, place):
    """The class of key columns; text where none is known."""
    position = place.first_key + column
    at = key_class + sample * place.classes + position
    return tl.load(at, mask=is_column & (position < place.classes), other=0).to(tl.int32)


@triton.jit
def factor_of(kind, text, text_sink, patch, patch_sink):
    """The factor of the class `kind`."""
    return tl.where(kind == 0, text, tl.where(kind == 1, text_sink, tl.where(kind == 2, patch, patch_sink)))


@triton.jit
def redistributed(text, text_sink, patch, patch_sink, settings):
    """A rule: what becomes of the masses of the classes of a row; see `spec.redistribution_gains`.

    Returns:
        The factor of each class, whether the row is changed, and the mass moved. Another rule has the same form; the
        kernels are given one as a constant.
    """
    image = patch + patch_sink
    is_changed = (image >= settings[2]) & (patch >= settings[1] * image) & (patch > 0)
    taken = tl.where(is_changed, settings[0], 0.0)
    moved = taken * (text_sink + patch_sink)
    grow = 1.0 + moved / tl.where(is_changed, patch, 1.0)
    return taken * 0.0 + 1.0, 1.0 - taken, grow, 1.0 - taken, is_changed, moved
