"""JSON text to values: cut-off files, deep nesting, endless numbers, lone surrogates end in a sentence or a value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError

_GAP = re.compile(r"[\s,]*")
_BLANK = re.compile(r"\s*")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def one_line(text: str, limit: int = 80) -> str:
    """Text from a file as it may stand in a message: no line breaks or control characters, and not endless."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 4 * limit])
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."


def json_values(text: str, path: Path, what: str) -> Iterator[tuple[int, int, Any]]:
    """Yields ``(first line, last line, value)``; opens top-level arrays and reads their elements singly.

    Half a surrogate pair is no character and becomes U+FFFD.

    Args:
        text: the text.
        path: where it is from, for messages.
        what: what it is for, for messages.

    Raises:
        LvlmAttnError: text that is not JSON (with its line), nested too deeply, or cut off.
    """
    decode = json.JSONDecoder().raw_decode
    clean = _ESCAPED_SURROGATE.search(text) is not None
    at, line, counted = 0, 1, 0
    in_array = False
    while True:
        found = (_GAP if in_array else _BLANK).match(text, at)
        at = at if found is None else found.end()
        line += text.count("\n", counted, at)
        counted = at
        if at >= len(text):
            if in_array:
                raise LvlmAttnError(
                    f"{what} {path} ends inside its array at line {line}; it seems cut off, fetch it again."
                )
            return
        if text[at] == "[" and not in_array:
            in_array, at = True, at + 1
            continue
        if text[at] == "]" and in_array:
            in_array, at = False, at + 1
            continue
        try:
            value, end = decode(text, at)
        except json.JSONDecodeError as error:
            raise LvlmAttnError(
                f"{what} {path}, line {error.lineno}: not valid JSON ({error.msg}); "
                "correct that line, or fetch the file again if it is cut off."
            ) from error
        except RecursionError:
            raise LvlmAttnError(
                f"{what} {path}, line {line}: lists or objects are nested too deeply to be read; "
                "is it the right file?"
            ) from None
        except ValueError:  # Python refuses to convert integers of thousands of digits
            raise LvlmAttnError(
                f"{what} {path}, line {line}: a number has too many digits; correct that entry."
            ) from None
        last = line + text.count("\n", at, end)
        yield line, last, without_surrogates(value) if clean else value
        at, line, counted = end, last, end


def without_surrogates(value: Any) -> Any:
    """The value with U+FFFD for every lone surrogate in its strings, which no file could hold.

    Example:
        >>> without_surrogates({"a": ["x" + chr(0xD800)]})
        {'a': ['x\ufffd']}
    """
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value
