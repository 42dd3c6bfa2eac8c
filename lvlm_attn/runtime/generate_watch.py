"""Knowing when `generate` has returned, which no hook of a module tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from lvlm_attn.runtime.stack import is_running

Told = Callable[[Any, Mapping[str, Any]], None]


class GenerateWatch:
    """A method `generate` of one model that tells what it returned.

    A `generate` that runs within another one, or in answer to what is told, tells nothing. Watches may be removed in
    any order.
    """

    def __init__(self, model: nn.Module, told: Told):
        self._model, self._told = model, told
        self._is_on = True
        self._before = vars(model).get("generate")
        self._inner = cast("Any", model).generate

    def install(self) -> None:
        """Puts the method on the model."""
        vars(self._model)["generate"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generates."""
        is_inner = is_running(GenerateWatch._generate, self=self)
        return self._inner(*args, **kwargs) if is_inner else self._generate(args, kwargs)

    def _generate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output = self._inner(*args, **kwargs)
        if self._is_on:
            self._told(output, {**({"inputs": args[0]} if args else {}), **kwargs})
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def remove(self) -> None:
        """Takes the method off, or silences it where a later watch stands on it; safe to call again."""
        self._is_on = False
        if vars(self._model).get("generate") is not self:
            return
        below = self._before
        while isinstance(below, GenerateWatch) and not below._is_on:
            below = below._before
        if below is None:
            vars(self._model).pop("generate", None)
        else:
            vars(self._model)["generate"] = below
