"""What the files of a run hold, checked as they are read, so that whoever uses a run can rely on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown

Shape = Mapping[str, Any] | list[Any] | tuple[str, Callable[[Any], bool]]
_MOST = 2**53


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) < float("inf"))


TEXT: Shape = ("text", lambda value: isinstance(value, str))
WHOLE: Shape = ("a whole number", _is_whole)
NUMBER: Shape = ("a number", _is_number)
NAME: Shape = ("text or a number", lambda value: isinstance(value, str) or _is_number(value))
SWITCH: Shape = ("true or false", lambda value: isinstance(value, bool))

SETTINGS: Shape = {
    "benchmark": {"name": TEXT},
    "model": {},
    "interventions": [TEXT],
    "generation": {
        "decode": TEXT, "temperature": NUMBER, "max_new_tokens": WHOLE, "num_beams": WHOLE, "suffix": TEXT,
    },
}  # fmt: skip
"""Keys may be missing, or null; others may hold anything."""
SCORING: Shape = {"parser": TEXT, "mode": TEXT, "drop_incomplete_sentence": SWITCH, "parts": [TEXT]}
LINE: Shape = {
    "sample_id": NAME, "image": NAME, "question_id": NAME, "question": TEXT, "label": TEXT, "category": TEXT,
    "cluster": NAME, "raw_text": TEXT, "objects": [TEXT], "options": [TEXT], "groups": {}, "n_new_tokens": WHOLE,
    "first_token": {"yes": NUMBER, "no": NUMBER}, "object": TEXT, "subset": TEXT,
}  # fmt: skip


def require_shape(value: Any, shape: Shape, where: str, name: str = "") -> Any:
    """Returns the value, or says what in it is of another kind.

    Args:
        value: what was read.
        shape: what is expected.
        where: how a message names the file and place.
        name: the key in it.

    Raises:
        LvlmAttnError: naming the key, what it holds, and what was expected.
    """
    if isinstance(shape, tuple):
        words, is_right = shape
        if not is_right(value):
            raise _other(value, words, where, name)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _other(value, "a list", where, name)
        for item in value:
            require_shape(item, shape[0], where, f"an entry of {name}")
    else:
        if not isinstance(value, dict):
            raise _other(value, "an object", where, name)
        for key, inner in shape.items():
            if value.get(key) is not None:
                require_shape(value[key], inner, where, key)
    return value


def _other(value: Any, words: str, where: str, name: str) -> LvlmAttnError:
    return LvlmAttnError(f"{where}: {name} is {shown(value)}, expected {words}; make the run again.")


def require_line(line: Mapping[str, Any], path: Path) -> None:
    """Checks a result line.

    Raises:
        LvlmAttnError: it names no sample, or a field is of another kind than an evaluation writes.
    """
    where = f"result file {path}"
    if line.get("sample_id") is None:
        raise LvlmAttnError(f"{where}: a line names no sample_id; make the run again.")
    require_shape(line, LINE, f"{where}, sample {shown(line['sample_id'])}", "the line")
    for kind, group in (line.get("groups") or {}).items():
        if not (
            isinstance(group, list) and len(group) == 2 and isinstance(group[0], str) and _is_whole(group[1])
        ):
            raise _other(group, "a name and a number", where, f"group {shown(kind)}")
