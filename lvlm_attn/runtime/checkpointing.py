"""Gradient checkpointing: layers that are computed again in the backward pass, with the interventions of the forward.

By then the call is over: its wraps do not act any more, and the memory of its prompt has gone on. So what a layer found
when it was entered is kept beside its inputs, and stands again while it is recomputed. What is counted meanwhile is
thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.interventions.context import State
from lvlm_attn.runtime.active import ACTIVE, INSTALLED, Acting
from lvlm_attn.runtime.arguments import entering_hidden
from lvlm_attn.runtime.transformers_private import CHECKPOINT, checkpoints_layer

if TYPE_CHECKING:
    from lvlm_attn.runtime.session import Session


def checkpointed_layers(
    layers: Sequence[nn.Module], wraps: Sequence[Session]
) -> Iterator[tuple[nn.Module, Any]]:
    """The layers whose recomputation does not know of the wraps yet, and what is to checkpoint them.

    Args:
        layers: the decoder layers.
        wraps: the wraps on the model; those that come later are added to it.
    """
    for layer in layers:
        if checkpoints_layer(layer) and not isinstance(getattr(layer, CHECKPOINT), Checkpoint):
            yield layer, Checkpoint(getattr(layer, CHECKPOINT), wraps)


class Checkpoint:
    """Called by a layer as its checkpointing function.

    Args:
        function: the one that the user chose.
        wraps: the wraps on the model.
    """

    def __init__(self, function: Callable[..., Any], wraps: Sequence[Session]):
        self._function, self._wraps = function, wraps

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoints a layer.

        Raises:
            UnsupportedError: if recomputed layers would be cut off from the graph of the forward.
        """
        if torch.is_grad_enabled() and getattr(self._function, "keywords", {}).get("use_reentrant", True):
            raise UnsupportedError(
                "Gradient checkpointing with use_reentrant=True loses the gradients of what interventions keep; pass "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        return self._function(_Moment(layer, self._wraps), *args, **kwargs)


class _Moment:
    """A layer as it is entered, which may be computed again."""

    def __init__(self, layer: Callable[..., Any], wraps: Sequence[Session]):
        self._layer = layer
        self._is_over = False
        self._wraps = tuple(wraps)
        self._active = ACTIVE.get()
        self._calls = [
            (item.call, dict(item.call.memo.kept)) for item in self._active if isinstance(item, Acting)
        ]
        self._memories = [(state, copied(state.memory)) for wrap in wraps for _, state in wrap.editors]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._is_over:
            self._is_over = True
            return self._layer(*args, **kwargs)
        if any(wrap not in INSTALLED for wrap in self._wraps):
            raise LvlmAttnError(
                "The backward pass computes layers again, and the wrap that acted in the forward has been left; call "
                "backward() inside the block."
            )
        hidden = entering_hidden(args, {**getattr(self._layer, "keywords", {}), **kwargs})
        with self._standing_again(hidden):
            return self._layer(*args, **kwargs)

    @contextmanager
    def _standing_again(self, hidden: Tensor) -> Iterator[None]:
        before = ACTIVE.get()
        states = [(state, state.memory, state.stats, state.counts) for state, _ in self._memories]
        try:
            for wrap in self._wraps:
                wrap.rest(False)
            ACTIVE.set(self._active)
            for call, memo in self._calls:
                call.memo.kept = dict(memo)
                call.entering = hidden
            for state, memory in self._memories:
                _set(state, copied(memory), {}, {})
            yield
        finally:
            ACTIVE.set(before)
            for call, _ in self._calls:
                call.memo.clear()
                call.entering = None
            for state, memory, stats, counts in states:
                _set(state, memory, stats, counts)


def copied(memory: dict[Any, Any]) -> dict[Any, Any]:
    """A memory that later layers do not change; lists and dictionaries in it are copied, too."""
    return {
        key: type(value)(value) if type(value) in (list, dict, set) else value
        for key, value in memory.items()
    }


def _set(state: State, memory: dict[Any, Any], stats: dict[Any, Any], counts: dict[Any, Any]) -> None:
    state.memory, state.stats, state.counts = memory, stats, counts
