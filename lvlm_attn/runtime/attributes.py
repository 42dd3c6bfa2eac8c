"""Attributes of a model that are others for a while."""

from __future__ import annotations

from typing import Any

from torch import nn

_ABSENT = object()


class Attributes:
    """Instance attributes of modules, set aside and put back.

    Each is noted before it is changed, and forgotten after all are back, so `restore` may be called at any moment, and
    again where it was interrupted. What somebody else has set meanwhile stays.

    Example:
        >>> layer, kept = nn.Linear(2, 2), Attributes()
        >>> kept.put(layer, "training", False)
        >>> kept.restore()
        >>> layer.training
        True
    """

    def __init__(self) -> None:
        self._kept: list[tuple[nn.Module, str, Any, Any]] = []

    def put(self, module: nn.Module, name: str, value: Any) -> None:
        """Sets an attribute on the instance, past its class and `nn.Module.__setattr__`."""
        before = vars(module).get(name, _ABSENT)
        if before is not value:
            self._kept.append((module, name, before, value))
            vars(module)[name] = value

    def restore(self) -> None:
        """Puts everything back, the last change first; safe to call again."""
        for module, name, before, ours in reversed(self._kept):
            if vars(module).get(name, _ABSENT) is not ours:
                continue
            if before is _ABSENT:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = before
        self._kept.clear()
