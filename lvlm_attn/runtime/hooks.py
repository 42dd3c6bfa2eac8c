"""Hooks on modules that come off whole, also where an interrupt cut short putting them on or taking them off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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
        self._resting: list[tuple[nn.Module, Any, int]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> int:
        """Has a hook called before a module; returns the number torch gave it."""
        self._placed.append((module, hook))
        return module.register_forward_pre_hook(hook, with_kwargs=with_kwargs).id

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

    def before_prompts(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Has a hook called before a module, with its keyword arguments, unless these hooks `rest`."""
        self._resting.append((module, hook, self.before(module, hook, with_kwargs=True)))

    def rest(self, is_resting: bool) -> None:
        """Takes the hooks of `before_prompts` off for a while, or puts them where they were; safe to call again.

        A hook that does nothing still costs a module the short way through its call.
        """
        for module, hook, number in self._resting:
            hooks = module._forward_pre_hooks
            if is_resting:
                hooks.pop(number, None)
                module._forward_pre_hooks_with_kwargs.pop(number, None)
            elif number not in hooks:
                later = [other for other in hooks if other > number]
                module._forward_pre_hooks_with_kwargs[number] = True
                hooks[number] = hook
                for other in later:
                    cast("Any", hooks).move_to_end(other)

    def remove(self) -> None:
        """Takes all hooks off, the last one first; safe to call again."""
        for module, hook in reversed(self._placed):
            take_off(module, hook)
        self._placed.clear()
        self._resting.clear()


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
