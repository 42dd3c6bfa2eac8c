"""What `lvlm.generate` is doing with a wrapped model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from lvlm_attn.runtime.stack import is_running

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Mode:
    """A way of using the model.

    Attributes:
        is_silent: whether all sites of the wrap stand still: methods look at the image and ask the bare model so;
            wraps that they make themselves do act.
        request: the request that is served, as interventions rewrote it; None in plain calls.
        views: how many views are decoded beside it.
    """

    is_silent: bool = False
    request: Any = None
    views: int = 0


PLAIN = Mode()
"""Calls of the user's."""


class Modes:
    """The modes of one wrap, the innermost last."""

    def __init__(self) -> None:
        self._entered: list[Mode] = []

    @property
    def current(self) -> Mode:
        """The innermost mode whose function is running; an interrupt may have left others behind."""
        while self._entered and not is_running(self.run, mode=self._entered[-1]):
            self._entered.pop()
        return self._entered[-1] if self._entered else PLAIN

    def run(self, mode: Mode, function: Callable[[], T]) -> T:
        """Calls a function in a mode."""
        self._entered.append(mode)
        try:
            return function()
        finally:
            self._entered.remove(mode)
