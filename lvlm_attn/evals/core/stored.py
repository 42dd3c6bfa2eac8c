"""Pictures inside tables: parquet of the hub, folders saved by `datasets`, VLMEvalKit's TSV files with base64.

A picture is read and decoded when its turn comes, so that a data set of gigabytes takes little memory.
"""

from __future__ import annotations

import base64
import csv
import json
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lvlm_attn.evals.core.records import read_records
from lvlm_attn.evals.core.table_files import parquet_rows

_BASE64_LEAST = 64
"""VLMEvalKit writes a picture once; a shorter cell is the index of the row that holds it."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture in a table; a sample takes it in place of a PIL image, and `as_image` opens it.

    Attributes:
        where: how messages name it.
        read: gives its bytes.
    """

    where: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class StoredRow:
    """One row of a table.

    Attributes:
        where: how messages name it.
        value: its words.
        pictures: its pictures by the name of their column.
    """

    where: str
    value: dict[str, Any]
    pictures: dict[str, StoredPicture]


def stored_rows(path: Path, what: str) -> Iterator[StoredRow]:
    """Yields the rows of a table with their pictures; other files give rows without pictures.

    Args:
        path: a parquet, TSV, JSON or CSV file, or a folder saved by `datasets`.
        what: what it is for, used in messages.

    Raises:
        LvlmAttnError: it cannot be read or is damaged.
    """
    if path.suffix == ".parquet":
        rows = parquet_rows(None, path, what)
        cells: _Parquet | _Arrow | _Base64 = _Parquet(path)
    elif path.suffix == ".tsv":
        rows = [record.value for record in read_records(path, what).records]
        cells = _Base64(path)
    elif path.is_dir():
        rows = [record.value for record in read_records(path, what).records]
        cells = _Arrow(path)
    else:
        for record in read_records(path, what).records:
            yield StoredRow(f"{what} {path}, {record.where}", record.value, {})
        return
    for i, row in enumerate(rows):
        where = f"{what} {path}, row {i + 1}"
        pictures = {
            name: StoredPicture(where, lambda i=i, name=name: cells.read(i, name))  # type: ignore[misc]
            for name in cells.columns
        }
        yield StoredRow(where, row, pictures)


class _Parquet:
    """Reads cells of bytes, one row group after another."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self._file = parquet.ParquetFile(path)
        self.columns = _picture_columns(self._file.schema_arrow)
        self._starts = [0]
        for group in range(self._file.metadata.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._load = lru_cache(maxsize=2)(self._column)

    def _column(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name]).column(0)

    def read(self, row: int, name: str) -> bytes:
        group = bisect_right(self._starts, row) - 1
        cell = self._load(group, self.columns[name])[row - self._starts[group]].as_py()
        return _bytes(cell)


class _Arrow:
    """Cells of a folder that `datasets` saved, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow as arrow

        files = _arrow_files(path)
        tables = [arrow.ipc.open_stream(arrow.memory_map(str(file))).read_all() for file in files]
        self._table = arrow.concat_tables(tables) if tables else None
        self.columns = {} if self._table is None else _picture_columns(self._table.schema)

    def read(self, row: int, name: str) -> bytes:
        assert self._table is not None
        return _bytes(self._table.column(name)[row].as_py())


def _arrow_files(path: Path) -> list[Path]:
    """The files of a saved data set, in the order in which its rows are read."""
    if (path / "dataset_dict.json").is_file():
        splits = json.loads((path / "dataset_dict.json").read_bytes())["splits"]
        return [file for split in splits for file in _arrow_files(path / Path(split).name)]
    listed = json.loads((path / "state.json").read_bytes())["_data_files"]
    return [path / Path(item["filename"]).name for item in listed]


class _Base64:
    """The column `image` of a TSV file."""

    def __init__(self, path: Path) -> None:
        limit = csv.field_size_limit(sys.maxsize)
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
        finally:
            csv.field_size_limit(limit)
        self._cells = [row.get("image") or "" for row in rows]
        self._by_index = {str(row.get("index")): i for i, row in enumerate(rows)}
        self.columns = {"image": "image"} if any(self._cells) else {}

    def read(self, row: int, name: str) -> bytes:
        cell = self._cells[row]
        if len(cell) < _BASE64_LEAST and cell in self._by_index:
            cell = self._cells[self._by_index[cell]]
        return base64.b64decode(cell)


def _picture_columns(schema: Any) -> dict[str, str]:
    """Columns that hold bytes, by name, with the name parquet reads them under."""
    from pyarrow import types

    found = {}
    for item in schema:
        if types.is_binary(item.type) or types.is_large_binary(item.type):
            found[item.name] = item.name
        elif types.is_struct(item.type) and any(inner.name == "bytes" for inner in item.type):
            found[item.name] = f"{item.name}.bytes"
    return found


def _bytes(cell: Any) -> bytes:
    found = cell.get("bytes") if isinstance(cell, dict) else cell
    return found if isinstance(found, bytes) else b""
