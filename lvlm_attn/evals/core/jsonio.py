"""Reading bytes, and writing JSON so that a crash cannot tear it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError

MAX_BYTES = 4 << 30
"""A packed file that unpacks to more is refused before it fills the memory."""


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


def write_json(path: Path, value: object) -> None:
    """Writes JSON through a temporary file and a rename: a reader sees the old or the new file whole.

    Lone surrogates are written as escapes, which JSON allows and UTF-8 does not.
    """
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Writes text the same way as :func:`write_json`."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)
