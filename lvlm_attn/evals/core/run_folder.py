"""A run on disk: ``config.json``, ``samples.jsonl`` (one flushed line per sample) and ``metrics.json``.

A folder with the same settings goes on where it stopped; with other settings it is refused, so that two runs
never mix. A last line torn by a crash is cut away and its sample asked again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.records import latest_by_id, read_records


def check_writable(path: str | Path) -> Path:
    """Makes the folder and proves that a file can be written into it, before anything slow begins.

    Raises:
        LvlmAttnError: the folder cannot be made or written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise LvlmAttnError(f"output folder {path} is a file; choose another --out.")
    probe = path / f".write-test-{uuid.uuid4().hex}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise LvlmAttnError(
            f"output folder {path} cannot be written ({error.strerror}); "
            "choose another --out or mend its permissions."
        ) from error
    return path


class RunFolder:
    """An open run.

    Args:
        path: the folder; it is made if need be.
        settings: everything that decides the answers; compared on resuming.
        notes: further entries of ``config.json``, such as versions and scoring; written, not compared.

    Raises:
        LvlmAttnError: the folder holds a run with other settings, is not writable, or its files are damaged.
    """

    def __init__(
        self, path: str | Path, settings: Mapping[str, Any], notes: Mapping[str, Any] | None = None
    ) -> None:
        self.path = check_writable(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        config, samples = self.path / "config.json", self.path / "samples.jsonl"
        self._file: TextIO | None = None
        self.lines: dict[str, dict[str, Any]] = {}
        if config.exists():
            self._require_same(config)
        elif samples.exists():
            raise LvlmAttnError(
                f"{samples} has no config.json beside it; choose another --out, nothing was changed."
            )
        else:
            write_json(config, {"settings": self.settings, **(notes or {})})
        if samples.exists():
            _cut_torn_line(samples)
            if samples.stat().st_size:
                for record in latest_by_id(read_records(samples, "result file").records):
                    self.lines[str(record.value.get("sample_id"))] = record.value

    def _require_same(self, config: Path) -> None:
        records = read_records(config, "run settings").records
        before = records[0].value.get("settings")
        if not isinstance(before, dict):
            raise LvlmAttnError(f"{config} holds no settings; choose another --out, nothing was changed.")
        for key in {**before, **self.settings}:
            if before.get(key) != self.settings.get(key):
                raise LvlmAttnError(
                    f"{self.path} holds a run with other settings ({key} was {_short(before.get(key))}, "
                    f"now {_short(self.settings.get(key))}); choose another --out, or delete that folder."
                )

    def __enter__(self) -> RunFolder:
        """Opens the result file for appending."""
        self._file = (self.path / "samples.jsonl").open("a", encoding="utf-8", errors="backslashreplace")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the result file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def append(self, lines: Iterable[dict[str, Any]]) -> None:
        """Writes result lines and flushes them, so that a crash later loses nothing of them."""
        if self._file is None:
            raise LvlmAttnError(f"{self.path} is not open; write inside `with folder:`.")
        for line in lines:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.lines[line["sample_id"]] = line
        self._file.flush()

    def answered(self) -> set[str]:
        """Ids with an answer; failed samples are not among them and are tried again."""
        return {name for name, line in self.lines.items() if not line.get("error")}

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replaces ``metrics.json`` in one step."""
        write_json(self.path / "metrics.json", dict(metrics))


def _cut_torn_line(path: Path) -> None:
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
