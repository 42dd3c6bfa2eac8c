"""A user's copy of a benchmark: its files, its tables and its pictures."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.fields import Row, flatten, id_key
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.pictures import PictureFolder
from lvlm_attn.evals.core.stored import StoredPicture, StoredRow, stored_rows

TABLES = (".parquet", ".tsv")


class DataFolder:
    """Finds what a benchmark is made of in the folder that holds it.

    Args:
        path: the folder; also one table by itself.
        images: the folder with the pictures, where they are elsewhere.
        title: the benchmark, for messages.

    Raises:
        LvlmAttnError: a folder does not exist.
    """

    def __init__(self, path: Path, images: Path | None, title: str) -> None:
        if not path.exists():
            raise LvlmAttnError(
                f"{title} folder {path} does not exist; pass the folder with your copy of it."
            )
        self.path, self.title = path, title
        self.pictures = images or (path if path.is_dir() else path.parent)
        self._found = PictureFolder(self.pictures)
        self.remarks: list[str] = []

    def find(self, *names: str) -> Path | None:
        """The file of one of these names that lies least deep; earlier names come first."""
        if not self.path.is_dir():
            return self.path if self.path.name in names else None
        found: dict[str, Path] = {}
        for place, folders, files in os.walk(self.path):
            folders.sort()
            for name in names:
                here = Path(place) / name
                if name in files and (name not in found or len(here.parts) < len(found[name].parts)):
                    found[name] = here
        return next((found[name] for name in names if name in found), None)

    def require(self, *names: str) -> Path:
        """As `find`.

        Raises:
            LvlmAttnError: none of the files is there.
        """
        found = self.find(*names)
        if found is None:
            raise LvlmAttnError(
                f"{self.title}: {' or '.join(names)} is not in {self.path}; pass the folder with your copy of "
                f"{self.title}."
            )
        return found

    def table_rows(self) -> Iterator[StoredRow]:
        """The rows of all tables with pictures, those of the hub and of VLMEvalKit, by plain name."""
        for path in self.tables():
            for row in stored_rows(path, f"{self.title} table"):
                yield StoredRow(row.where, flatten(row.value), row.pictures)

    def tables(self) -> list[Path]:
        """Parquet and TSV files, or the folder itself where `datasets` saved it."""
        if not self.path.is_dir():
            return [self.path]
        if (self.path / "state.json").is_file() or (self.path / "dataset_dict.json").is_file():
            return [self.path]
        return sorted(path for path in self.path.rglob("*") if path.suffix in TABLES and path.is_file())

    def picture(self, name: str, within: Sequence[str] = ()) -> Path:
        """Where a picture is, or where it should be if it is missing.

        Args:
            name: its path in the benchmark.
            within: folders it must lie in, where its file name alone may mean several pictures.
        """
        found = self._found.find(name)
        folders = {part.lower() for part in found.parent.parts}
        if folders.issuperset(part.lower() for part in within):
            return found
        parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        return self.pictures.joinpath(*parts or ["unnamed"])

    def stored(
        self, row: StoredRow, column: str, name: str, within: Sequence[str] = ()
    ) -> Path | StoredPicture:
        """The picture of a row: the one inside the table, else the file of that name."""
        return row.pictures.get(column) or self.picture(name, within)


def text_in(row: Row, names: Sequence[str], where: str) -> str:
    """The first field that holds words or a whole number.

    Raises:
        LvlmAttnError: none does; the message names the field and what there is.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if not isinstance(value, str) and (number := id_key(value)) is not None:
            return number
    has = one_line(", ".join(row)) or "nothing"
    raise LvlmAttnError(f"{where}: no {names[0]!r} in this entry (it has {has}); fetch the file again.")


def one_of(value: Any, known: Iterable[str], what: str, where: str) -> str:
    """A value that must be one of a few words.

    Raises:
        LvlmAttnError: it is another.
    """
    word = str(value).strip().strip("().").lower()
    listed = list(known)
    if word not in listed:
        raise LvlmAttnError(
            f"{where}: {what} is {one_line(str(value), 40)!r}, expected {' or '.join(listed)}; correct the entry."
        )
    return word
