"""Weights in 8 bits, compressed with what browsers decompress.

A layer is one block of bytes: first the largest weight of every head and row (fp32), then the weights. A weight w of a
row whose largest is m becomes `q = round(255 sqrt(w / m))`, so that small ones stay apart; it comes back as
`m (q / 255)^2`, off by at most `m / 255`. The first head is the mean of all heads.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

Bytes8 = NDArray[np.uint8]
Single = NDArray[np.float32]
_LEVEL = 6


@dataclass(frozen=True, eq=False)
class Packed:
    """The weights of one run.

    Attributes:
        blocks: one text in base64 per layer; the first is the mean of all layers.
        masses: `(layers + 1, heads + 1, rows)` in base64: the weight on image patches.
        heads: what the heads after the mean are called.
        group: how many heads were averaged into one.
    """

    blocks: tuple[str, ...]
    masses: str
    heads: tuple[str, ...]
    group: int

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.blocks)) + len(self.masses)


def pack(maps: AttentionMaps, keys: Sequence[int], limit: int) -> Packed:
    """Packs the raw weights of a single sample, with heads averaged in groups where they would not fit.

    Args:
        maps: the maps.
        keys: which key positions to keep, in order.
        limit: most bytes of text; where even one mean head needs more, that is what is packed.
    """
    heads = next(iter(maps.weights.values())).shape[1]
    group = first_group(maps, keys, limit)
    while True:
        packed = _packed(maps, keys, group)
        if packed.size <= limit or group >= heads:
            return packed
        group = min(2 * group, heads)


def first_group(maps: AttentionMaps, keys: Sequence[int], limit: int) -> int:
    """The fewest heads to average so that a guess from one layer fits; never too many by the guess's own error."""
    layer = maps.layers[len(maps.layers) // 2]
    heads = maps.weights[layer].shape[1]
    one = len(packed_layer(with_mean(_own(maps, layer, keys), 1))) / (heads + 1)
    group = 1
    while group < heads and 0.8 * one * (len(maps.layers) + 1) * (-(-heads // group) + 1) > limit:
        group *= 2
    return min(group, heads)


def quantised(weights: Single) -> tuple[Single, Bytes8]:
    """The largest weight of every row, and the weights in 8 bits.

    Args:
        weights: `(..., keys)`, at least 0.

    Returns:
        `(...)` in fp32 and `(..., keys)`.

    Example:
        >>> top, small = quantised(np.array([[0.0, 0.25, 1.0]], dtype=np.float32))
        >>> top.tolist(), small.tolist()
        ([1.0], [[0, 128, 255]])
    """
    top = weights.max(-1) if weights.shape[-1] else np.zeros(weights.shape[:-1], np.float32)
    share = weights / np.where(top > 0, top, 1)[..., None]
    return top.astype("<f4"), np.rint(255 * np.sqrt(np.clip(share, 0, 1))).astype(np.uint8)


def base64_of(values: NDArray[Any]) -> str:
    """fp32 numbers, compressed, in base64."""
    return _text(np.ascontiguousarray(values, dtype="<f4").tobytes())


def _packed(maps: AttentionMaps, keys: Sequence[int], group: int) -> Packed:
    heads = next(iter(maps.weights.values())).shape[1]
    is_patch = maps.layout.is_patch[0].numpy()[list(keys)]
    total: Single | None = None
    blocks, masses = [], []
    for layer in maps.layers:
        weights = with_mean(_own(maps, layer, keys), group)
        total = weights.astype(np.float32) if total is None else total + weights
        masses.append(weights[..., is_patch].sum(-1))
        blocks.append(packed_layer(weights))
    assert total is not None
    mean = (total / len(maps.layers)).astype(np.float32)
    blocks.insert(0, packed_layer(mean))
    masses.insert(0, mean[..., is_patch].sum(-1))
    names = [str(head) for head in maps.heads] or (["mean"] if heads == 1 else list(map(str, range(heads))))
    named = tuple(
        names[start] if group == 1 else f"{names[start]}-{names[min(start + group, heads) - 1]}"
        for start in range(0, heads, group)
    )
    return Packed(tuple(blocks), base64_of(np.stack(masses)), named, group)


def _own(maps: AttentionMaps, layer: Any, keys: Sequence[int]) -> Single:
    found: Single = maps.weights[layer][0].numpy()[:, :, list(keys)]
    return found


def packed_layer(weights: Single) -> str:
    """Weights `(heads, rows, keys)` as one block in base64."""
    return _text(_block(weights))


def with_mean(weights: Single, group: int) -> Single:
    """`(1 + groups, ...)` of `(heads, ...)`: the mean of all heads, then that of every group."""
    parts = [weights.mean(0, keepdims=True)]
    if group == 1:
        parts.append(weights)
    else:
        parts += [
            weights[start : start + group].mean(0, keepdims=True) for start in range(0, len(weights), group)
        ]
    return np.concatenate(parts)


def _block(weights: Single) -> bytes:
    top, small = quantised(weights)
    return top.tobytes() + small.tobytes()


def _text(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, _LEVEL)).decode("ascii")
