"""Tables: CSV and TSV, xlsx (VLMEvalKit's results), parquet (the hub), and folders saved by `datasets`.

Pictures in them are left out. An empty cell is an empty string, so that a model that said nothing has answered.
"""

from __future__ import annotations

import csv
import json
import sys
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.json_text import one_line, without_surrogates
from lvlm_attn.evals.core.jsonio import MAX_BYTES

_PICTURE_CELL = 4096


def delimited_rows(text: str, tabs: bool, path: Path, what: str) -> Iterator[dict[str, Any]]:
    """Yields the rows of a CSV or TSV file under its heading.

    Args:
        text: the file's text.
        tabs: whether the file's name says tabs; a `.csv` may separate by comma, semicolon or tab.
        path: for messages.
        what: for messages.

    Raises:
        LvlmAttnError: no heading, a name given twice, or a row with more cells than the heading.
    """
    heading = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if tabs else max(",;\t", key=heading.count)
    limit = csv.field_size_limit(sys.maxsize)  # pictures in base64 are longer than Python's limit of a cell
    try:
        reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=False)
        names: list[str] | None = None
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if names is None:
                names = _heading(row, path, what)
                continue
            if len(row) > len(names):
                raise LvlmAttnError(
                    f"{what} {path}, line {reader.line_num}: {len(row)} cells under {len(names)} headings; "
                    "put quotes around text that holds the separator."
                )
            cells = row + [""] * (len(names) - len(row))
            yield {name: cell for name, cell in zip(names, cells, strict=True) if not _is_picture(name, cell)}
    except csv.Error as error:
        raise LvlmAttnError(f"{what} {path} is no readable table ({error}); save it as CSV again.") from error
    finally:
        csv.field_size_limit(limit)


def xlsx_rows(data: bytes, path: Path, what: str) -> list[dict[str, Any]]:
    """Returns the rows of a workbook's first sheet under its heading.

    Raises:
        LvlmAttnError: `openpyxl` is missing, the file is damaged, or it has no heading.
    """
    try:
        import openpyxl
    except ImportError:
        raise _needs("openpyxl", path, what) from None
    try:
        with zipfile.ZipFile(BytesIO(data)) as parts:
            if sum(part.file_size for part in parts.infolist()) > MAX_BYTES:
                raise LvlmAttnError(f"{what} {path} unpacks to more than 4 GiB; split the table.")
        book = openpyxl.load_workbook(BytesIO(data), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        sheet.reset_dimensions()
        rows = [list(row) for row in sheet.iter_rows(values_only=True)]
        book.close()
    except LvlmAttnError:
        raise
    except Exception as error:  # openpyxl raises whatever the XML inside makes it raise
        raise LvlmAttnError(
            f"{what} {path} is no readable xlsx file ({one_line(str(error)) or type(error).__name__}); save it again."
        ) from error
    rows = [row for row in rows if any(cell is not None for cell in row)]
    if not rows:
        return []
    while rows[0] and rows[0][-1] is None:
        rows[0].pop()
    names = _heading(["" if cell is None else str(cell) for cell in rows[0]], path, what)
    return [_row(names, row) for row in rows[1:]]


def parquet_rows(data: bytes | None, path: Path, what: str) -> list[dict[str, Any]]:
    """Returns the rows of a parquet file.

    Args:
        data: its bytes; None reads from `path` what is needed, which leaves pictures on the disk.
        path: the file.
        what: for messages.

    Raises:
        LvlmAttnError: `pyarrow` is missing or the file is damaged.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise _needs("pyarrow", path, what) from None
    try:
        file = parquet.ParquetFile(path if data is None else BytesIO(data))
        schema = file.schema_arrow
        names = [name for field in schema for name in _without_bytes(field.name, field.type)]
        rows = _rows(file.read(columns=names))
    except LvlmAttnError:
        raise
    except Exception as error:  # pyarrow raises OSError, ArrowInvalid, NotImplementedError and others
        raise _damaged(path, what, "parquet", error) from error
    return rows


def read_folder(path: Path, what: str) -> tuple[str, str, list[dict[str, Any]]]:
    """Reads a folder that `datasets` saved, or one that holds the parquet files of one data set.

    Returns:
        Layout, hash over all files read, and rows; the splits of a saved `DatasetDict` follow one another, each row
        with its split under ``split`` unless it has that field.

    Raises:
        LvlmAttnError: the folder is neither, or is damaged.
    """
    if (path / "dataset_dict.json").is_file():
        splits = _json_file(path / "dataset_dict.json", what).get("splits")
        if not isinstance(splits, list) or not all(isinstance(split, str) for split in splits):
            raise LvlmAttnError(f"{what} {path} has a damaged dataset_dict.json; save the data set again.")
        parts = [(split, *_arrow_folder(path / Path(split).name, what)) for split in splits]
        rows = [{"split": split, **row} for split, _, found in parts for row in found]
        return "datasets folder", sha256("".join(part[1] for part in parts).encode()).hexdigest(), rows
    if (path / "state.json").is_file():
        digest, rows = _arrow_folder(path, what)
        return "datasets folder", digest, rows
    files = sorted(path.rglob("*.parquet"))
    folders = sorted({file.parent for file in files})
    if not files:
        raise LvlmAttnError(
            f"{what} {path} is a folder, but neither one saved by datasets nor one with parquet files; "
            "name a file inside it."
        )
    if len(folders) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in folders[:4])
        raise LvlmAttnError(f"{what} {path} holds several data sets ({names}); name one of these folders.")
    whole, found = sha256(), []
    for file in files:
        data = file.read_bytes()
        whole.update(data)
        found += parquet_rows(data, file, what)
    return "parquet", whole.hexdigest(), found


def _arrow_folder(path: Path, what: str) -> tuple[str, list[dict[str, Any]]]:
    try:
        import pyarrow as arrow
    except ImportError:
        raise _needs("pyarrow", path, what) from None
    listed = _json_file(path / "state.json", what).get("_data_files")
    if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
        raise LvlmAttnError(f"{what} {path} has a damaged state.json; save the data set again.")
    digest, rows = sha256(), []
    for item in listed:
        file = path / Path(str(item.get("filename"))).name
        try:
            data = file.read_bytes()
            digest.update(data)
            table = arrow.ipc.open_stream(data).read_all()
            rows += _rows(table)
        except Exception as error:  # as for parquet
            raise _damaged(file, what, "arrow", error) from error
    return digest.hexdigest(), rows


def _rows(table: Any) -> list[dict[str, Any]]:
    """Rows of an arrow table without its pictures; of a picture's struct the path stays."""
    import pyarrow as arrow

    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if arrow.types.is_struct(kind) and any(field.name == "path" for field in kind):
            columns[name] = [cell and cell.get("path") for cell in _cells(column, ("path",))]
        elif not _is_binary(kind):
            columns[name] = column.to_pylist()
    names = list(columns)
    return [_row(names, row) for row in zip(*columns.values(), strict=True)]


def _cells(column: Any, keep: Sequence[str]) -> Iterator[dict[str, Any] | None]:
    for chunk in column.chunks:
        fields = {name: chunk.field(name).to_pylist() for name in keep}
        for at, valid in enumerate(chunk.is_valid().to_pylist()):
            yield {name: values[at] for name, values in fields.items()} if valid else None


def _without_bytes(name: str, kind: Any) -> list[str]:
    """The columns to read, as parquet names them; bytes stay on the disk."""
    import pyarrow as arrow

    if _is_binary(kind):
        return []
    if arrow.types.is_struct(kind) and any(_is_binary(field.type) for field in kind):
        return [f"{name}.{field.name}" for field in kind if not _is_binary(field.type)]
    return [name]


def _is_binary(kind: Any) -> bool:
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        inner = kind.value_type
        return _is_binary(inner) or (
            types.is_struct(inner) and any(_is_binary(field.type) for field in inner)
        )
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _heading(cells: list[str], path: Path, what: str) -> list[str]:
    names = [cell.strip() or f"column {at}" for at, cell in enumerate(cells, 1)]
    twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
    if twice is not None:
        raise LvlmAttnError(f"{what} {path} has two columns named {one_line(twice)!r}; rename one.")
    return names


def _row(names: Sequence[str], cells: Sequence[Any]) -> dict[str, Any]:
    padded = [*cells, *[None] * (len(names) - len(cells))]
    row = {name: "" if cell is None else cell for name, cell in zip(names, padded)}
    return {name: without_surrogates(cell) for name, cell in row.items() if not _is_picture(name, cell)}


def _is_picture(name: str, cell: object) -> bool:
    """Pictures in base64; VLMEvalKit's tables hold them under `image`."""
    return name.lower().startswith("image") and isinstance(cell, str) and len(cell) > _PICTURE_CELL


def _json_file(path: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, what, "JSON", error) from error
    if not isinstance(value, dict):
        raise LvlmAttnError(f"{what} {path} is not what datasets writes; save the data set again.")
    return value


def _needs(package: str, path: Path, what: str) -> LvlmAttnError:
    return LvlmAttnError(
        f"{what} {path} needs the package {package}; install it with `pip install 'lvlm-attn[eval]'`."
    )


def _damaged(path: Path, what: str, kind: str, error: Exception) -> LvlmAttnError:
    reason = one_line(str(error)) or type(error).__name__
    return LvlmAttnError(f"{what} {path} is no readable {kind} file ({reason}); fetch or save it again.")
