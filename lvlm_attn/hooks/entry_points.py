"""Methods that installed packages bring.

A package names its methods in its `pyproject.toml`, and they are there wherever `lvlm_attn` is:

    [project.entry-points."lvlm_attn.methods"]
    quiet = "my_package.quiet:QuietHead"

The value is a subclass of `Intervention`, or a function without parameters that registers methods itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

from lvlm_attn.interventions.base import Intervention

GROUP = "lvlm_attn.methods"
_loaded: set[str] = set()


def entry_points() -> tuple[metadata.EntryPoint, ...]:
    """What installed packages offer; nothing of it is imported."""
    return tuple(metadata.entry_points(group=GROUP))


def load_entry_points(register: Callable[[type[Intervention]], Any]) -> None:
    """Registers what installed packages offer, each once; one that fails is warned about and left out.

    Args:
        register: what a class is handed to.
    """
    for point in entry_points():
        if point.value in _loaded:
            continue
        _loaded.add(point.value)
        try:
            found = point.load()
            if isinstance(found, type) and issubclass(found, Intervention):
                register(found)
            else:
                found()
        except Exception as error:  # someone else's package must not take the command line down
            warnings.warn(
                f"The method {point.name!r} ({point.value}) could not be loaded: {type(error).__name__}: {error}",
                stacklevel=2,
            )
