"""Reading the JSON that circulates, and writing our own so that a crash cannot tear it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError


@dataclass(frozen=True)
class Record:
    """One JSON object of a file and the line it starts on (from 1)."""

    line: int
    value: dict[str, Any]


@dataclass(frozen=True)
class RecordFile:
    """All objects of one file.

    Attributes:
        path: where it was read.
        sha256: hash of its bytes, for result files.
        layout: ``"json lines"``, ``"array"`` or ``"concatenated"``.
        records: its objects in file order.
    """

    path: Path
    sha256: str
    layout: str
    records: tuple[Record, ...]


def read_bytes(path: str | Path, what: str) -> bytes:
    """Returns the bytes of a file, or says in one sentence which file could not be read and why.

    Args:
        path: the file.
        what: what the file is for, as it should be called in the message.

    Raises:
        LvlmAttnError: the file is missing, is a folder, or cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise LvlmAttnError(f"{what} {path} is a folder; name a file inside it.")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LvlmAttnError(f"{what} {path} does not exist; check the path.") from None
    except OSError as error:
        raise LvlmAttnError(
            f"{what} {path} cannot be read ({error.strerror}); check its permissions."
        ) from error


def read_records(path: str | Path, what: str = "the JSON file") -> RecordFile:
    """Reads JSON lines, a JSON array, or objects written one after the other over several lines.

    Windows line ends and a byte-order mark are accepted.

    Args:
        path: the file.
        what: what the file is for, used in messages.

    Raises:
        LvlmAttnError: unreadable file, text that is not JSON (with its line), or a value that is not an
            object.
    """
    path = Path(path)
    data = read_bytes(path, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LvlmAttnError(
            f"{what} {path} is not UTF-8 text (byte {error.start}); is it a compressed or other file?"
        ) from error
    records: list[Record] = []
    spans_lines = False
    is_array = text.lstrip().startswith("[")
    for line, last_line, value in _values(text, path, what):
        if not isinstance(value, dict):
            raise LvlmAttnError(
                f"{what} {path}, line {line}: expected a JSON object, found {json.dumps(value)[:40]}; "
                "each entry must look like {...}."
            )
        spans_lines |= last_line > line
        records.append(Record(line, value))
    if not records:
        raise LvlmAttnError(f"{what} {path} holds no JSON objects; is it empty or the wrong file?")
    layout = "array" if is_array else "concatenated" if spans_lines else "json lines"
    return RecordFile(path, sha256(data).hexdigest(), layout, tuple(records))


def _values(text: str, path: Path, what: str) -> Iterator[tuple[int, int, Any]]:
    """Yields ``(first line, last line, value)``; opens one top-level array and reads its elements singly."""
    decode = json.JSONDecoder().raw_decode
    at, line, counted = 0, 1, 0
    in_array = False
    while True:
        while at < len(text) and (text[at].isspace() or (text[at] == "," and in_array)):
            at += 1
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
                "mend that line, or fetch the file again if it is cut off."
            ) from error
        last = line + text.count("\n", at, end)
        yield line, last, value
        at, line, counted = end, last, end


def write_json(path: Path, value: object) -> None:
    """Writes JSON through a temporary file and a rename: a reader sees the old or the new file whole."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes text the same way as :func:`write_json`."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
