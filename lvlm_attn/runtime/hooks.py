"""Hooks on modules that come off whole, also where an interrupt cut short putting them on or taking them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


class Hooks:
    """The forward hooks of one owner.

    A hook is noted before it is put on, and forgotten after all are off, so `remove` may be called at any moment, and
    again where it was interrupted.

    Example:
        >>> layer, hooks = nn.Linear(2, 2), Hooks()
        >>> hooks.before(layer, lambda module, args: None)
        >>> len(layer._forward_pre_hooks)
        1
        >>> hooks.remove()
        >>> len(layer._forward_pre_hooks)
        0
    """

    def __init__(self) -> None:
        self._placed: list[tuple[nn.Module, Any]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> None:
        """Has a hook called before a module."""
        self._placed.append((module, hook))
        module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)

    def after(
        self,
        module: nn.Module,
        hook: Callable[..., Any],
        *,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> None:
        """Has a hook called after a module; with `always_call` after an exception, too."""
        self._placed.append((module, hook))
        module.register_forward_hook(hook, with_kwargs=with_kwargs, always_call=always_call)

    def remove(self) -> None:
        """Takes all hooks off, the last one first; safe to call again."""
        for module, hook in reversed(self._placed):
            take_off(module, hook)
        self._placed.clear()


def take_off(module: nn.Module, hook: Any) -> None:
    """Takes a forward hook off a module, however far an earlier attempt came."""
    for hooks, extras in (
        (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
        (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
    ):
        for key in [key for key, value in hooks.items() if value is hook]:
            for extra in extras:
                extra.pop(key, None)
            hooks.pop(key)  # last, for by it the others are found
