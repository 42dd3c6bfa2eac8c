"""One thread at a time uses a wrapped model."""

from __future__ import annotations

import sys
import threading
from types import FrameType

from torch import nn

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.target import Target


class ThreadClaim:
    """The thread whose prompt the wrap holds.

    A thread holds the claim until it has left the model: between the forwards of its `generate` nobody else gets in,
    and afterwards the next thread takes over. Whether it has left is read off its stack, so that neither an exception
    nor an interrupt leaves a claim behind.

    Args:
        target: the model.
    """

    def __init__(self, target: Target):
        self._owners = _owners(target)
        self._thread: int | None = None
        self._lock = threading.Lock()

    def take(self) -> None:
        """Claims the model for this thread.

        Raises:
            UnsupportedError: if another thread is in it.
        """
        current = threading.get_ident()
        if self._thread == current:
            return
        with self._lock:
            if self._thread is not None and _is_inside(self._thread, self._owners):
                raise UnsupportedError(
                    "Two threads use one wrapped model at the same time; give each thread its own model, or take turns."
                )
            self._thread = current


def _owners(target: Target) -> tuple[nn.Module, ...]:
    """The modules from the model down to its language model, whose methods run while the model is in use."""
    path = {id(module): module for module in (target.model, target.parts.base, target.parts.language_model)}
    names = {id(module): name for name, module in target.model.named_modules()}
    inner = names.get(id(target.parts.language_model), "")
    for name, module in target.model.named_modules():
        if inner.startswith(f"{name}."):
            path.setdefault(id(module), module)
    return tuple(path.values())


def _is_inside(thread: int, owners: tuple[nn.Module, ...]) -> bool:
    """Whether a method of one of the modules is on the stack of a thread."""
    frame: FrameType | None = sys._current_frames().get(thread)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if any(owner is module for module in owners):
            return True
        frame = frame.f_back
    return False
