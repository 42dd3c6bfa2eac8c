"""What was found out about models, so that it need not be found out twice; a key says what it depends on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

T = TypeVar("T")
_MISSING = object()
_ALL: WeakSet[Remembered] = WeakSet()


class Remembered:
    """Findings by model and key. It keeps no model alive, and of each model the latest few findings.

    Args:
        most: findings kept of each model; the one that was not asked for the longest goes first.

    Example:
        >>> known, model = Remembered(most=1), nn.Linear(2, 2)
        >>> known.found(model, "key", lambda: 1), known.found(model, "key", lambda: 2)
        (1, 1)
        >>> known.found(model, None, lambda: 2)  # nothing is known to tell it by
        2
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = WeakKeyDictionary()
        _ALL.add(self)

    def found(self, model: nn.Module, key: Hashable | None, make: Callable[[], T]) -> T:
        """What was found under a key, made now if it is not known; what raises is not kept.

        Args:
            model: what it was found out about.
            key: all that the finding depends on; None where that cannot be told, and then nothing is kept.
            make: finds it out.
        """
        if key is None:
            return make()
        kept = self._known.setdefault(model, OrderedDict())
        value = kept.get(key, _MISSING)
        if value is _MISSING:
            value = kept[key] = make()
            while len(kept) > self._most:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        return cast("T", value)

    def forget(self) -> None:
        """Forgets everything."""
        self._known.clear()


def forget_all() -> None:
    """Forgets what every `Remembered` of this process knows, so that the next wrap pays for it again."""
    for known in _ALL:
        known.forget()
