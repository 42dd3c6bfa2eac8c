"""Records of a file or folder, in every layout that evaluation data circulates in.

JSON lines, one JSON array (on one line or indented), objects written one after the other, one object that wraps a
list, any of these with Windows line ends, a byte-order mark, UTF-16 or gzip; CSV and TSV; xlsx; parquet; and
folders saved by `datasets`. A record is known by its place in the file, never by its line: a whole array may stand
on one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from gzip import GzipFile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.core.json_text import json_values, one_line
from lvlm_attn.evals.core.jsonio import MAX_BYTES, read_bytes

_PIECE = 1 << 22
_WRAPPERS = (
    "imgToEval",
    "sentences",
    "annotations",
    "questions",
    "data",
    "rows",
    "samples",
    "results",
    "answers",
)
_COCO = re.compile(
    rb'\s*(?:\xef\xbb\xbf)?\s*\{\s*"(?:info|images|annotations|categories|licenses|type)"\s*:\s*[\[{"]'
)


@dataclass(frozen=True)
class Record:
    """One record of a file.

    Attributes:
        place: its place in the file, from 1.
        line: the line it starts on, from 1; for tables the row, with the heading as row 1.
        value: its fields.
    """

    place: int
    line: int
    value: dict[str, Any]

    @property
    def where(self) -> str:
        """How a message names the record."""
        return f"line {self.line}" if self.place == self.line else f"record {self.place} (line {self.line})"


@dataclass(frozen=True)
class RecordFile:
    """All records of one file or folder.

    Attributes:
        path: where it was read.
        sha256: hash of its bytes, for result files.
        layout: ``json lines``, ``array``, ``concatenated``, ``wrapped in NAME``, ``csv``, ``tsv``, ``xlsx``,
            ``parquet`` or ``datasets folder``.
        records: in file order.
    """

    path: Path
    sha256: str
    layout: str
    records: tuple[Record, ...]


def read_records(path: str | Path, what: str = "the JSON file") -> RecordFile:
    """Reads all records of a file or of a `datasets` folder.

    Pictures inside parquet, arrow and TSV files are left out: what is read are the words about them.

    Args:
        path: the file or folder.
        what: what it is for, used in messages.

    Raises:
        LvlmAttnError: it cannot be read, is damaged or holds no records; the message names file, place and remedy.

    Example:
        >>> read_records("answers.jsonl.gz").records[0].value  # doctest: +SKIP
        {'question_id': 1, 'text': 'Yes'}
    """
    path = Path(path)
    if path.is_dir():
        from lvlm_attn.evals.core.table_files import read_folder

        layout, digest, rows = read_folder(path, what)
        return _table(path, digest, layout, rows, what)
    data = read_bytes(path, what)
    digest = sha256(data).hexdigest()
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if data[:2] == b"\x1f\x8b":
        data = unpack(data, path, what)
        suffixes = suffixes[:-1] if suffixes[-1:] == [".gz"] else suffixes
    if data[:4] == b"PAR1":
        from lvlm_attn.evals.core.table_files import parquet_rows

        return _table(path, digest, "parquet", parquet_rows(data, path, what), what)
    if data[:4] == b"PK\x03\x04":
        from lvlm_attn.evals.core.table_files import xlsx_rows

        return _table(path, digest, "xlsx", xlsx_rows(data, path, what), what)
    text = decode(data, path, what)
    suffix = suffixes[-1] if suffixes else ""
    if suffix in (".csv", ".tsv") and text.lstrip()[:1] not in ("{", "["):
        from lvlm_attn.evals.core.table_files import delimited_rows

        return _table(path, digest, suffix[1:], delimited_rows(text, suffix == ".tsv", path, what), what)
    return _json(path, digest, text, what)


def is_coco(path: str | Path) -> bool:
    """Whether a file begins like COCO's own annotations, ``{"info": ..., "images": [...], "annotations": [...]}``."""
    path = Path(path)
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if head[:2] == b"\x1f\x8b":
                file.seek(0)
                head = GzipFile(fileobj=file).read(4096)
    except (OSError, EOFError, zlib.error):
        return False
    return _COCO.match(head) is not None


def latest_by_id(records: Iterable[Record]) -> list[Record]:
    """Keeps the last record of each ``sample_id``, so a retried sample counts once; records without one all stay."""
    kept: dict[object, Record] = {}
    for record in records:
        name = record.value.get("sample_id")
        kept[name if isinstance(name, str) else ("place", record.place)] = record
    return list(kept.values())


def unpack(data: bytes, path: Path, what: str) -> bytes:
    """Unpacks gzip.

    Raises:
        LvlmAttnError: damaged, cut off, or larger than :data:`MAX_BYTES` once unpacked.
    """
    parts: list[bytes] = []
    size = 0
    try:
        stream = GzipFile(fileobj=BytesIO(data))
        while part := stream.read(_PIECE):
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise LvlmAttnError(
                    f"{what} {path} unpacks to more than {MAX_BYTES >> 30} GiB; split the file."
                )
    except (OSError, EOFError, zlib.error) as error:
        raise LvlmAttnError(
            f"{what} {path} is a damaged gzip file ({one_line(str(error))}); fetch or pack it again."
        ) from error
    return b"".join(parts)


def decode(data: bytes, path: Path, what: str) -> str:
    """Decodes UTF-8, or UTF-16 where a byte-order mark says so.

    Raises:
        LvlmAttnError: the bytes are neither.
    """
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise LvlmAttnError(
            f"{what} {path} is not UTF-8 text (byte {error.start}); is it a compressed or other file?"
        ) from error


def read_object(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a JSON file that holds one object, whatever its keys are.

    Args:
        path: the file.
        what: what it is for, used in messages.

    Raises:
        LvlmAttnError: it cannot be read, is damaged, or holds something else.
    """
    path = Path(path)
    values = [value for _, _, value in json_values(decode(read_bytes(path, what), path, what), path, what)]
    if len(values) != 1 or not isinstance(values[0], dict):
        raise LvlmAttnError(
            f"{what} {path} does not hold one JSON object; it seems damaged or of another kind."
        )
    return values[0]


def _json(path: Path, digest: str, text: str, what: str) -> RecordFile:
    records: list[Record] = []
    spans_lines = False
    for first, last, value in json_values(text, path, what):
        if not isinstance(value, dict):
            raise LvlmAttnError(
                f"{what} {path}, {Record(len(records) + 1, first, {}).where}: expected a JSON object, "
                f"found {shown(value)}; each entry must look like {{...}}."
            )
        spans_lines |= last > first
        records.append(Record(len(records) + 1, first, value))
    if not records:
        raise LvlmAttnError(f"{what} {path} holds no JSON objects; is it empty or the wrong file?")
    layout = "array" if text.lstrip().startswith("[") else "concatenated" if spans_lines else "json lines"
    if len(records) == 1 and (wrapped := _unwrapped(records[0])):
        layout, records = wrapped
    return RecordFile(path, digest, layout, tuple(records))


def _unwrapped(record: Record) -> tuple[str, list[Record]] | None:
    """The rows of an object that only holds a list of them, or a table of them by key."""
    for name in _WRAPPERS:
        rows: Any = record.value.get(name)
        keys: list[str] | None = None
        if isinstance(rows, dict):
            keys, rows = list(rows), list(rows.values())
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            continue
        if name == "rows" and all(isinstance(row.get("row"), dict) for row in rows):
            rows = [row["row"] for row in rows]  # pages of the hub's data viewer
        if keys is not None:
            rows = [{"key": key, **row} for key, row in zip(keys, rows, strict=True)]
        return f"wrapped in {name}", [Record(place, record.line, row) for place, row in enumerate(rows, 1)]
    return None


def _table(path: Path, digest: str, layout: str, rows: Iterable[Mapping[str, Any]], what: str) -> RecordFile:
    first = 2 if layout in ("csv", "tsv", "xlsx") else 1
    records = tuple(Record(place, place + first - 1, dict(row)) for place, row in enumerate(rows, 1))
    if not records:
        raise LvlmAttnError(f"{what} {path} holds no rows; is it empty or the wrong file?")
    return RecordFile(path, digest, layout, records)
