"""Interventions as text: `var:rho=0.8+vhr:alpha=2`, used by the command line and in result files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.interventions.base import Intervention, parameters

_NUMBER = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$", re.IGNORECASE)


def parse_interventions(text: str, known: Mapping[str, type[Intervention]]) -> tuple[Intervention, ...]:
    """Reads interventions from text.

    Args:
        text: interventions joined by `+`, each a name, or a name, a colon and comma-separated `key=value`
            pairs. Lists stand in brackets, text with commas, plus signs or brackets in quotes (a quote within is
            written twice). `none` and empty text are no intervention.
        known: classes by name.

    Raises:
        LvlmAttnError: for an unknown name or parameter (the closest is suggested), a value of the wrong form,
            or one the method refuses.
    """
    if text.strip().lower() in ("", "none", "baseline"):
        return ()
    return tuple(_parse_one(part.strip(), known) for part in _split(text, "+"))


def _parse_one(text: str, known: Mapping[str, type[Intervention]]) -> Intervention:
    name, _, rest = text.partition(":")
    name = name.strip().lower()
    if name not in known:
        raise LvlmAttnError(
            f"There is no method named {name!r}.{closest(name, known)} "
            f"The methods are {', '.join(sorted(known))}."
        )
    kind = known[name]
    names = [item.name for item in parameters(kind)]
    arguments: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in _split(rest, ","))):
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise LvlmAttnError(f"{name}: {pair!r} is not of the form key=value.")
        if key not in names:
            listed = f"It takes {', '.join(names)}." if names else "It takes no parameters."
            raise LvlmAttnError(f"{name} has no parameter named {key!r}.{closest(key, names)} {listed}")
        if key in arguments:
            raise LvlmAttnError(f"{name}: parameter {key!r} is given twice; give it once.")
        arguments[key] = value if key == "layers" and value.lower() != "none" else _value(value)
    return kind(**arguments)


def _split(text: str, separator: str) -> list[str]:
    """Parts a text at a separator outside brackets and quotes; a quote opens where a value begins."""
    parts, depth, current, quote, skip = [], 0, "", "", False
    for position, character in enumerate(text):
        if skip or quote:
            current += character
            is_doubled = not skip and character == quote and text[position + 1 : position + 2] == quote
            quote = "" if character == quote and not skip and not is_doubled else quote
            skip = is_doubled
            continue
        if character in "'\"" and (not current.strip() or current.rstrip()[-1] in "=,["):
            quote = character
        depth += (character == "[") - (character == "]")
        is_exponent = separator == "+" and re.search(r"\de$", text[:position], re.IGNORECASE)
        if character == separator and depth == 0 and not is_exponent:
            parts.append(current)
            current = ""
        else:
            current += character
    if depth or quote:
        what = (
            f"The quote {quote} in {text!r} is not closed"
            if quote
            else f"The brackets in {text!r} do not match"
        )
        raise LvlmAttnError(f'{what}; write lists as [1,2,3] and text with commas as "a, b".')
    return [*parts, current]


def _value(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("none", "null"):
        return None
    if lowered in ("true", "false"):
        return lowered == "true"
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return tuple(_value(part.strip()) for part in _split(inner, ",")) if inner else ()
    if _NUMBER.match(text):
        return float(text) if re.search(r"[.e]", lowered) else int(text)
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(2 * text[0], text[0])
    return text
