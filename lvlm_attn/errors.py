"""The errors a user sees: one sentence that names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LvlmAttnError(ValueError):
    """A mistake the caller can fix; the message says how.

    The command line prints the message alone and exits with code 2; ``--debug`` shows the traceback.
    """


class UnsupportedError(LvlmAttnError):
    """The combination asked for would be computed wrongly, so it is refused."""


def closest(name: str, known: Iterable[str], *, least: float = 0.5) -> str:
    """Returns ``" Did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string.

    Args:
        name: what was written.
        known: what there is.
        least: how alike they must be, from 0 to 1.

    Example:
        >>> closest("vra", ["var", "vhr"])
        " Did you mean 'var'?"
    """
    matches = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=least)
    if not matches:
        return ""
    # Swapped letters are the likeliest slip, and difflib does not see them as one.
    best = next((match for match in matches if sorted(match) == sorted(name.lower())), matches[0])
    return f" Did you mean {best!r}?"
