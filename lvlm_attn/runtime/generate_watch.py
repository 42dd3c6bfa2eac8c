"""Knowing when `generate` has returned, which no hook of a module tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

Told = Callable[[Any, Mapping[str, Any]], None]


class GenerateWatch:
    """A method `generate` of one model that tells what it returned; `remove` takes it off.

    A `generate` that runs within another one tells nothing. Watches may be removed in any order.
    """

    def __init__(self, model: nn.Module, told: Told):
        self._model, self._told = model, told
        self._depth = 0
        self._is_on = True
        self._before = vars(model).get("generate")
        self._inner = cast("Any", model).generate
        vars(model)["generate"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generates."""
        self._depth += 1
        try:
            output = self._inner(*args, **kwargs)
        finally:
            self._depth -= 1
        if self._is_on and self._depth == 0:
            self._depth += 1  # what is decoded in answer to this is no generate of the user's
            try:
                self._told(output, {**({"inputs": args[0]} if args else {}), **kwargs})
            finally:
                self._depth -= 1
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def remove(self) -> None:
        """Takes the method off, or silences it where a later watch stands on it."""
        self._is_on = False
        if vars(self._model).get("generate") is not self:
            return
        below = self._before
        while isinstance(below, GenerateWatch) and not below._is_on:
            below = below._before
        if below is None:
            vars(self._model).pop("generate")
        else:
            vars(self._model)["generate"] = below
