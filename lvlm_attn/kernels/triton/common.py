"""What the Triton kernels share on the host: the tuples they take, and how they are launched.

Importing this module needs Triton; `lvlm_attn.kernels.dispatch` imports it only where it is used.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import PackedEdits, PackedVisibility, Shape
from lvlm_attn.kernels.spec import Geometry
from lvlm_attn.kernels.triton.tiles import Tile, padded_head_dim


class Mask(NamedTuple):
    """The tensors of a `PackedVisibility`; its shape is a constant of the kernel."""

    query_group: Tensor | None
    key_group: Tensor | None
    tables: Tensor | None

    @staticmethod
    def of(packed: PackedVisibility) -> Mask:
        """The tensors of a mask over groups."""
        return Mask(packed.query_group, packed.key_group, packed.tables)


class Change(NamedTuple):
    """How scores change; see `PackedEdits`."""

    amplified: Tensor | None = None
    gain: Tensor | None = None
    bias: Tensor | None = None
    heads: Tensor | None = None

    @staticmethod
    def of(edits: PackedEdits) -> Change:
        """What changes scores."""
        return Change(edits.amplified, edits.gain, edits.bias, edits.heads)


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

    @staticmethod
    def of(call: AttentionCall, packed: PackedVisibility, tile: Tile, *, signed: bool = False) -> Form:
        """What kernels of a call are compiled for."""
        dim = call.query.shape[3]
        wide = padded_head_dim(dim)
        return Form(packed.shape, signed, dim, wide, tile.block_m, tile.block_n, precision(call.query.dtype))


class Place(NamedTuple):
    """Where queries and keys stand and how they are cut up: numbers that change from step to step, each `hidden`.

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
        kv_heads: heads of keys.
        group: query heads of each.
        rows: rows of a head, where these are not the queries.
        splits: parts of the keys.
        length: keys in a part.
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
    kv_heads: int
    group: int
    rows: int
    splits: int
    length: int

    @staticmethod
    def of(
        geometry: Geometry,
        edits: PackedEdits | None = None,
        *,
        heads: tuple[int, int] = (1, 1),
        rows: int = 0,
        splits: int = 0,
        length: int = 0,
    ) -> Place:
        """The numbers of a call; `heads` are those of queries and of keys."""
        known = (edits.gain, edits.bias, edits.key_class) if edits is not None else (None,) * 3
        numbers = (
            geometry.start,
            geometry.first_key,
            geometry.queries,
            geometry.keys,
            geometry.written,
            geometry.window,
            *(0 if item is None else item.shape[1] for item in known),
            heads[1],
            heads[0] // heads[1],
            rows,
            splits,
            length,
        )
        return Place(*(None if number is None else hidden(number) for number in numbers))  # type: ignore[arg-type]


def strides_of(*tensors: Tensor | None) -> tuple[int, ...]:
    """Three strides of each tensor, of all dimensions but the last; 0 for None."""
    return sum(((0, 0, 0) if item is None else item.stride()[:3] for item in tensors), ())


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
        place.kv_heads >> 5,
        place.group >> 5,
        place.rows >> 5,
        place.splits >> 5,
        place.length >> 5,
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
        self.known: dict[int, Any] = {}

    def __call__(
        self, tensors: tuple[Tensor | None, ...], change: Change, strides: tuple[int, ...], *rest: Any
    ) -> None:
        """Launches the kernel; `rest` is the same at every launch, or differs in floats alone."""
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
            return
        key = self._key((*tensors, *change), rest) if is_plain and not is_interpreted() else None
        compiled = _COMPILED.get(key) if key is not None else None
        if compiled is None:
            compiled = self.kernel[self.grid](
                *tensors, change, strides, *rest, *self.constants, **self.options
            )
        else:
            compiled[self.grid](*tensors, change, strides, *rest, *self.constants)
        if key is not None and compiled is not None:
            _COMPILED[key] = compiled
            self.known[missing] = compiled[self.grid]

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
    """How `dot` multiplies a type: fp32 in full, and bf16, which the interpreter lacks, through fp32."""
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
