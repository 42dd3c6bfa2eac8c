"""Bytes of recorded weights that are held at once, counted tensor by tensor: what is resident says little of it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Peak:
    """The most bytes that were held at once so far.

    Attributes:
        bytes: every storage counted once, at its full size.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._rooms: list[Any] = []

    def count(self, log: Any, room: Any = None) -> None:
        """Counts what a recording holds now, with the rooms in which its steps are joined."""
        import torch

        if room is not None:
            self._rooms.append(weakref.ref(room))
        held = [value for step in log.steps for value in step.weights.values()]
        held += [reference() for reference in self._rooms]
        found = [value.untyped_storage() for value in held if isinstance(value, torch.Tensor)]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in found}
        self.bytes = max(self.bytes, sum(sizes.values()))


@contextmanager
def counted() -> Iterator[Peak]:
    """Counts whenever a recording takes something in: a layer's rows, or room for all rows of a layer.

    Example:
        >>> with counted() as peak:  # doctest: +SKIP
        ...     model.generate(**inputs)
        >>> peak.bytes  # doctest: +SKIP
    """
    from lvlm_attn.maps.recording import Log

    peak, add, make_room = Peak(), Log.add, Log._room

    def added(log: Any, *args: Any) -> None:
        add(log, *args)
        peak.count(log)

    def made(log: Any, *args: Any) -> Any:
        room = make_room(log, *args)
        peak.count(log, room)
        return room

    setattr(Log, "add", added)  # noqa: B010
    setattr(Log, "_room", made)  # noqa: B010
    try:
        yield peak
    finally:
        setattr(Log, "add", add)  # noqa: B010
        setattr(Log, "_room", make_room)  # noqa: B010
