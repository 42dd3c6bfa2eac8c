"""The errors a user sees: one sentence that names the thing, the value and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any
from unicodedata import category


class LvlmAttnError(ValueError):
    """A mistake the caller can fix; the message says how.

    The command line prints the message alone and exits with code 2; ``--debug`` shows the traceback.
    """


class UnsupportedError(LvlmAttnError):
    """The combination asked for would be computed wrongly, so it is refused."""


_TURNS = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
"""Characters that turn the direction of all that follows."""

_MOST_NAME = 64
_MOST_SHOWN = 80


def shown(value: Any) -> str:
    """How a message writes a value: on one line, and cut off where it is long.

    Example:
        >>> shown(0.5), shown(10**5000), len(shown("x" * 1000))
        ('0.5', 'a number of more than 4300 digits', 80)
    """
    if isinstance(value, str):
        text = repr(value[:_MOST_SHOWN])
    else:
        try:
            text = " ".join(repr(value).split())
        except Exception:  # integers of more than 4300 digits, and whatever a user's class raises
            is_number = isinstance(value, int)
            text = "a number of more than 4300 digits" if is_number else f"a {type(value).__name__}"
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."


def count_of(count: int, noun: str) -> str:
    """A number with its noun.

    Example:
        >>> count_of(1, "token"), count_of(3, "token")
        ('1 token', '3 tokens')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """Text as a terminal can show it: escape codes, other controls and lone surrogates are spelt out.

    Line breaks and tabs stay.

    Example:
        >>> printable("plain" + chr(27) + "[31m") == "plain" + chr(92) + "x1b[31m"
        True
    """
    return "".join(
        one if one in "\n\t" or not _is_control(one) else one.encode("unicode_escape").decode()
        for one in text
    )


def _is_control(one: str) -> bool:
    return category(one) in ("Cc", "Cs", "Zl", "Zp") or one in _TURNS


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
    if len(name) > _MOST_NAME:
        return ""
    matches = difflib.get_close_matches(name.lower(), list(known), n=3, cutoff=least)
    if not matches:
        return ""
    # Swapped letters are the likeliest slip, and difflib does not see them as one.
    best = next((match for match in matches if sorted(match) == sorted(name.lower())), matches[0])
    return f" Did you mean {best!r}?"
