"""A cache that has room for the next tokens, so that a step writes one position instead of copying all.

transformers' dynamic cache joins old and new keys by copying both at every step. Here only the new position is
written, and the cache is copied when its room is used up or its rows change places. Attention is given the positions
that are filled and no others, so results stay bit-identical; a static cache has all positions attended to under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

MOST_ROOM = 256
"""Positions kept free at most."""

USUAL_TOKENS = 20
"""How many tokens `generate` makes where nobody says how many."""


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
        self._buffers: tuple[Tensor, ...] = ()
        self._used: tuple[Tensor, ...] = ()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Adds positions and returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        added = key_states, value_states
        if not self._is_in_place() or end > self._buffers[0].shape[-2]:
            self._buffers = tuple(
                new.new_empty((*new.shape[:-2], end + self._room, new.shape[-1])) for new in added
            )
            if length:
                for buffer, old in zip(self._buffers, (self.keys, self.values)):
                    buffer[..., :length, :].copy_(old)
        for buffer, new in zip(self._buffers, added):
            buffer[..., length:end, :].copy_(new)
        self._use(end)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last positions, and keeps their room."""
        is_in_place = self._is_in_place()
        super().crop(tokens_to_remove)
        if is_in_place:
            self._used = self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Puts rows in another order, in new buffers: one copy, where moving and then growing takes two."""
        if not self._is_in_place():
            super().reorder_cache(beam_idx)
            return
        length = self.get_seq_length()
        self._buffers = tuple(
            buffer.new_empty((len(beam_idx), *buffer.shape[1:])) for buffer in self._buffers
        )
        for old, buffer in zip(self._used, self._buffers):
            torch.index_select(old, 0, beam_idx.to(old.device), out=buffer[..., :length, :])
        self._use(length)

    def _use(self, length: int) -> None:
        self._used = tuple(buffer[..., :length, :] for buffer in self._buffers)
        self.keys, self.values = self._used

    def _is_in_place(self) -> bool:
        """Whether keys and values are the used part of the buffers still, and not what others put there."""
        return bool(self._used) and self.keys is self._used[0] and self.values is self._used[1]


def give_room(cache: Any, tokens: int) -> None:
    """Lets the empty layers of a plain `DynamicCache` append in place; any other cache stays as it is.

    Layers with a sliding window stay as well: they hold a window and copy no more than that.

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


def with_roomy_cache(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` is called with, and a cache with room where it would make a growing one.

    A cache of the caller's, a choice of cache and a decoding loop that is the caller's are left alone.

    Args:
        model: the model that generates.
        options: inputs and options of `model.generate`.

    Returns:
        The same, with `past_key_values` where it is ours to choose.
    """
    sources = [
        options,
        *(vars(one) for one in (options.get("generation_config"), model.generation_config) if one),
    ]

    def chosen(name: str) -> Any:
        return next((one[name] for one in sources if one.get(name) is not None), None)

    is_theirs = options.get("past_key_values") is not None or options.get("custom_generate") is not None
    if is_theirs or chosen("cache_implementation") is not None or chosen("use_cache") is False:
        return dict(options)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    give_room(cache, _most_tokens(chosen("max_new_tokens"), chosen("max_length"), options))
    return {**options, "past_key_values": cache}


def _most_tokens(new: int | None, whole: int | None, options: Mapping[str, Any]) -> int:
    if new is not None:
        return int(new)
    ids = options.get("input_ids", options.get("inputs"))
    return USUAL_TOKENS if whole is None or ids is None else max(int(whole) - ids.shape[1], 0)
