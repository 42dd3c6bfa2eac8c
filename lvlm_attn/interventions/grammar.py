"""Interventions as text: `var:rho=0.8+vhr:alpha=2`, used by the command line and in result files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from lvlm_attn.errors import LvlmAttnError, closest, shown
from lvlm_attn.interventions.base import Intervention, no_dataclass, parameters

MOST_TEXT = 65_536
"""Characters that are read; parameters are bounded so that what is written stays far below."""

MOST_METHODS = 100
"""Methods that one text joins."""

MOST_DIGITS = 400
"""Characters of a number."""

MOST_BRACKETS = 8
"""Depth of lists within lists."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


def parse_interventions(text: str, known: Mapping[str, type[Intervention]]) -> tuple[Intervention, ...]:
    """Reads interventions from text, in time that grows with its length.

    Args:
        text: interventions joined by `+`, each a name, or a name, a colon and comma-separated `key=value`
            pairs. Lists stand in brackets, text with commas, plus signs or brackets in quotes (a quote within is
            written twice). `none` and empty text are no intervention.
        known: classes by name.

    Raises:
        LvlmAttnError: for an unknown name or parameter (the closest is suggested), a value of the wrong form,
            or one the method refuses.
    """
    if not isinstance(text, str):
        raise LvlmAttnError(f"Methods are read from text such as 'var:rho=0.8', not from {shown(text)}.")
    if len(text) > MOST_TEXT:
        raise LvlmAttnError(
            f"The text {shown(text)} has {len(text)} characters; methods are written in at most {MOST_TEXT}."
        )
    if text.strip().lower() in ("", "none", "baseline"):
        return ()
    parts = split(text, "+")
    if len(parts) > MOST_METHODS:
        raise LvlmAttnError(f"{shown(text)} joins {len(parts)} methods; join at most {MOST_METHODS}.")
    return tuple(_parse_one(part.strip(), known) for part in parts)


def _parse_one(text: str, known: Mapping[str, type[Intervention]]) -> Intervention:
    name, _, rest = text.partition(":")
    name = name.strip().lower()
    if name not in known:
        raise LvlmAttnError(
            f"There is no method named {shown(name)}.{closest(name, known)} "
            f"The methods are {', '.join(sorted(known))}. One of your own is known once its file is given with "
            f"--plugin FILE on the command line, or its class to la.register in Python."
        )
    kind = known[name]
    names = [item.name for item in parameters(kind)]
    arguments: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in split(rest, ","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise LvlmAttnError(f"{name}: {shown(pair)} is not of the form key=value.")
        if key not in names:
            listed = no_dataclass(kind) or (
                f"It takes {', '.join(names)}." if names else "It takes no parameters."
            )
            raise LvlmAttnError(f"{name} has no parameter named {shown(key)}.{closest(key, names)} {listed}")
        if key in arguments:
            raise LvlmAttnError(f"{name}: parameter {key!r} is given twice; give it once.")
        is_layers = key == "layers" and value.lower() != "none"
        arguments[key] = value.strip("'\"") if is_layers else _value(name, key, value)
    try:
        return kind(**arguments)
    except LvlmAttnError:
        raise
    except Exception as error:  # a method of a user's may fail in ways of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LvlmAttnError(
            f"{name} does not take {shown(rest.strip())} ({reason[:200].rstrip('.')}); see its documentation."
        ) from error


def split(text: str, separator: str) -> list[str]:
    """Parts a text at a separator outside brackets and quotes."""
    parts, start, depth = [], 0, 0
    for position, character in _outside_quotes(text, separator):
        depth += (character == "[") - (character == "]")
        if depth < 0:
            break
        if depth == 0 and character == separator and not (separator == "+" and _is_exponent(text, position)):
            parts.append(text[start:position])
            start = position + 1
    if depth:
        raise LvlmAttnError(
            f'The brackets in {shown(text)} do not match; write lists as [1,2,3] and text with commas as "a, b".'
        )
    return [*parts, text[start:]]


def _outside_quotes(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Places and characters outside quotes; a quote opens where a value begins, and is doubled within."""
    position, before = 0, ""
    while position < len(text):
        character = text[position]
        if character in "'\"" and before in ("", "=", ",", "["):
            end = text.find(character, position + 1)
            while end >= 0 and text[end + 1 : end + 2] == character:
                end = text.find(character, end + 2)
            if end < 0:
                raise LvlmAttnError(
                    f"The quote {character} in {shown(text)} is not closed; write lists as [1,2,3] and text with "
                    f'commas as "a, b".'
                )
            position, before = end + 1, character
            continue
        yield position, character
        if character == separator:
            before = ""
        elif not character.isspace():
            before = character
        position += 1


def _is_exponent(text: str, position: int) -> bool:
    """Whether the plus at a position belongs to a number such as 1e+5."""
    number, sign = text[max(position - 2, 0) : position], text[position + 1 : position + 2]
    return len(number) == 2 and number[0].isdecimal() and number[1] in "eE" and sign.isdecimal()


def _value(name: str, key: str, text: str, depth: int = 0) -> Any:
    lowered = text[:5].lower() if len(text) <= 5 else ""
    if lowered in ("none", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    if text.startswith("[") and text.endswith("]"):
        if depth == MOST_BRACKETS:
            raise LvlmAttnError(
                f"{name}: {key}={shown(text)} holds too many brackets in each other; write one list."
            )
        inner = text[1:-1].strip()
        if not inner:
            return ()
        return tuple(_value(name, key, part.strip(), depth + 1) for part in split(inner, ","))
    if _NUMBER.fullmatch(text):
        return _number(name, key, text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(2 * text[0], text[0])
    return text


def _number(name: str, key: str, text: str) -> int | float:
    value = None
    if len(text) <= MOST_DIGITS:
        value = float(text) if re.search(r"[.eE]", text) else int(text)
    if value is None or (isinstance(value, float) and math.isinf(value)):
        raise LvlmAttnError(f"{name}: {key}={shown(text)} is too large a number; write a smaller one.")
    return value
