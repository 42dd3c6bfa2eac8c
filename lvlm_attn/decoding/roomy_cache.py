"""A cache that has room for the next tokens, so that a step writes one position instead of copying all.

transformers' dynamic cache joins old and new keys by copying both at every step. With views in the batch that is the
largest cost of a step beside the weights; here only the new position is written, and the cache is copied when its room
is used up.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

MOST_ROOM = 256
"""Positions kept free at most."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A layer whose keys and values are the used part of larger buffers.

    Keys and values have shape `(batch, kv_heads, length, head_dim)`, contiguous in the last dimension only.

    Args:
        room: positions kept free when the buffers are made.

    Example:
        >>> layer, new = RoomyLayer(room=8), torch.ones(1, 2, 3, 4)
        >>> keys, values = layer.update(new, new)
        >>> keys, values = layer.update(new, new)
        >>> keys.shape
        torch.Size([1, 2, 6, 4])
    """

    def __init__(self, room: int = MOST_ROOM) -> None:
        super().__init__()
        self.keys: Any
        self.values: Any
        self._room = room
        self._buffers: list[Tensor] = []

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds positions and returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if not self._has_room(length, end):
            self._buffers = [
                new.new_empty((*new.shape[:-2], end + self._room, new.shape[-1]))
                for new in (key_states, value_states)
            ]
            for buffer, old in zip(self._buffers, (self.keys, self.values)):
                if length:
                    buffer[..., :length, :].copy_(old)
        for buffer, new in zip(self._buffers, (key_states, value_states)):
            buffer[..., length:end, :].copy_(new)
        self.keys, self.values = (buffer[..., :end, :] for buffer in self._buffers)
        return self.keys, self.values

    def _has_room(self, length: int, end: int) -> bool:
        """Whether keys and values are still the used part of the buffers (rows may have been reordered), with room."""
        if not length or not self._buffers:
            return False
        return all(
            used.data_ptr() == buffer.data_ptr()
            and used.shape[:-2] == buffer.shape[:-2]
            and end <= buffer.shape[-2]
            for used, buffer in zip((self.keys, self.values), self._buffers)
        )


def give_room(cache: Any, tokens: int) -> None:
    """Lets the empty layers of a plain `DynamicCache` append in place; any other cache stays as it is.

    Args:
        cache: the cache that `generate` made.
        tokens: how many will be generated at most.
    """
    if type(cache) is not DynamicCache or cache.offloading:
        return
    room = min(tokens, MOST_ROOM)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and not layer.is_initialized:
            cache.layers[place] = RoomyLayer(room)
