"""A run on disk: ``config.json``, ``samples.jsonl`` (one flushed line per sample), ``env.json`` and ``metrics.json``.

A folder with the same settings goes on where it stopped; with other settings it is refused, so that two runs
never mix, and while one process writes it another is refused. A last line torn by a crash is cut away and its sample
asked again. Several ranks write ``samples.rank0.jsonl`` and so on, which rank 0 merges by sample.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.ranks import Ranks
from lvlm_attn.evals.core.records import latest_by_id, read_object, read_records

SAMPLES = "samples.jsonl"
_PATIENCE = 2.0
"""Seconds to wait for the lock: a killed process may take a moment to go."""


def check_writable(path: str | Path) -> Path:
    """Makes the folder and proves that a file can be written into it, before anything slow begins.

    Raises:
        LvlmAttnError: the folder cannot be made or written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise LvlmAttnError(f"output folder {path} is a file; choose another --out.")
    probe = path / f".write-test-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("x")
        probe.unlink()
    except OSError as error:
        probe.unlink(missing_ok=True) if probe.parent.is_dir() else None
        raise LvlmAttnError(
            f"output folder {path} cannot be written ({error.strerror}); "
            "choose another --out, or see to its permissions and space."
        ) from error
    return path


@contextmanager
def saying_what_failed(path: Path) -> Iterator[None]:
    """Turns a full disk and its like into one sentence."""
    try:
        yield
    except OSError as error:
        raise LvlmAttnError(
            f"{path} could not be written ({error.strerror or error}); what was answered before is kept: make room and "
            "run the same command again to go on."
        ) from error


class RunFolder:
    """An open run; closed at the end of its outermost ``with`` block.

    Args:
        path: the folder; it is made if need be.
        settings: everything that decides the answers; compared on resuming.
        notes: further entries of ``config.json``, such as scoring; written, not compared, and of a run that goes on
            only ``limit`` is written anew.
        ranks: this process among those that share the run.

    Raises:
        LvlmAttnError: the folder holds a run with other settings, is being written by another process, is not
            writable, or its files are damaged.
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        notes: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.path = Path(path)
        self.ranks = ranks or Ranks()
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._file: TextIO | None = None
        self._lock: FileLock | None = None
        self._depth = 0
        self.lines: dict[str, dict[str, Any]] = {}
        try:
            self.ranks.first(lambda: self._prepare(notes or {}))
            self._read()
        except BaseException:
            self.close()
            raise

    def _prepare(self, notes: Mapping[str, Any]) -> None:
        check_writable(self.path)
        self._lock = _lock(self.path)
        config = self.path / "config.json"
        if config.exists():
            before = read_object(config, "run settings")
            self._require_same(config, before.get("settings"))
            if before.get("limit") != notes.get("limit"):  # a run may go on with another one
                kept = {key: value for key, value in before.items() if key != "limit"}
                limit = {key: value for key, value in notes.items() if key == "limit"}
                with saying_what_failed(config):
                    write_json(config, {**kept, **limit})
        elif (self.path / SAMPLES).exists():
            raise LvlmAttnError(
                f"{self.path / SAMPLES} has no config.json beside it; choose another --out, nothing was changed."
            )
        else:
            with saying_what_failed(config):
                write_json(config, {"settings": self.settings, **notes})
        _cut_torn_line(self.path / SAMPLES)
        self._merge()

    def _require_same(self, config: Path, before: object) -> None:
        if not isinstance(before, dict):
            raise LvlmAttnError(f"{config} holds no settings; choose another --out, nothing was changed.")
        for key in {**before, **self.settings}:
            if before.get(key) != self.settings.get(key):
                raise LvlmAttnError(
                    f"{self.path} holds a run with other settings ({key} was {_short(before.get(key))}, "
                    f"now {_short(self.settings.get(key))}); choose another --out, or delete that folder."
                )

    def _rank_files(self) -> list[Path]:
        found = [path for path in self.path.glob("samples.rank*.jsonl") if re.search(r"rank\d+\.", path.name)]
        return sorted(found, key=lambda path: int(path.name.split(".")[1].removeprefix("rank")))

    def _merge(self) -> None:
        """Takes what ranks wrote into the one file; a crash in between loses nothing and repeats nothing."""
        files = self._rank_files()
        if not files:
            return
        merged = {str(line["sample_id"]): line for line in _lines(self.path / SAMPLES)}
        for path in files:
            _cut_torn_line(path)
            for line in _lines(path):
                if not line.get("error") or str(line["sample_id"]) not in merged:
                    merged[str(line["sample_id"])] = line
        self._replace(merged.values())
        for path in files:
            path.unlink()

    def _replace(self, lines: Iterable[Mapping[str, Any]]) -> None:
        path = self.path / SAMPLES
        temporary = path.with_name(path.name + ".part")
        with saying_what_failed(path):
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(_written(line) for line in lines)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def _read(self) -> None:
        self.lines = {str(line.get("sample_id")): line for line in _lines(self.path / SAMPLES)}

    def __enter__(self) -> RunFolder:
        """Opens the result file for appending."""
        self._depth += 1
        if self._file is None:
            name = SAMPLES if self.ranks.count == 1 else f"samples.rank{self.ranks.rank}.jsonl"
            with saying_what_failed(self.path / name):
                self._file = (self.path / name).open(
                    "a", encoding="utf-8", errors="backslashreplace", newline="\n"
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the result file and gives the folder free."""
        self._depth -= 1
        if self._depth == 0:
            self.close()

    def close(self) -> None:
        """Closes the result file and gives the folder free; more than once is fine."""
        try:
            self._close_file()
        finally:
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with saying_what_failed(Path(file.name)):
                file.close()

    def append(self, lines: Iterable[dict[str, Any]], is_written: bool = True) -> None:
        """Writes result lines and flushes them, so that a crash later loses nothing of them.

        Args:
            lines: the lines.
            is_written: False keeps them in memory, where another rank writes them.

        Raises:
            LvlmAttnError: the folder is not open, or nothing more can be written.
        """
        if self._file is None:
            raise LvlmAttnError(f"{self.path} is not open; write inside `with folder:`.")
        listed = list(lines)
        try:
            with saying_what_failed(Path(self._file.name)):
                self._file.write("" if not is_written else "".join(map(_written, listed)))
                self._file.flush()
        except LvlmAttnError:
            self._abandon()
            raise
        self.lines.update({str(line["sample_id"]): line for line in listed})

    def _abandon(self) -> None:
        """Closes a file that cannot be written any more; what is left in its buffer is lost."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def has_answer(self, name: str) -> bool:
        """Whether a sample has an answer."""
        return name in self.lines and not self.lines[name].get("error")

    def answered(self) -> set[str]:
        """Ids with an answer; failed samples are not among them and are tried again."""
        return {name for name, line in self.lines.items() if not line.get("error")}

    def gather(self, order: Sequence[str]) -> None:
        """Waits for all ranks, and leaves one file with one line per sample, in the order of the benchmark.

        Args:
            order: the ids of all samples; lines of others come after them.
        """
        self._close_file()
        self.ranks.wait()
        self.ranks.first(lambda: self._tidy(order))
        self._read()

    def _tidy(self, order: Sequence[str]) -> None:
        self._merge()
        self._read()
        names = [name for name in order if name in self.lines]
        names += [name for name in self.lines if name not in set(order)]
        wanted = "".join(_written(self.lines[name]) for name in names)
        path = self.path / SAMPLES
        if names and (not path.is_file() or path.read_text(encoding="utf-8") != wanted):
            self._replace(self.lines[name] for name in names)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Replaces a JSON file of the folder in one step."""
        with saying_what_failed(self.path / name):
            write_json(self.path / name, dict(value))

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Replaces ``metrics.json`` in one step."""
        self.write("metrics.json", metrics)


def _lock(path: Path) -> FileLock:
    lock = FileLock(path / ".lock", timeout=_PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise LvlmAttnError(
            f"another process is writing {path}; wait until it has finished, or choose another --out."
        ) from error
    except OSError as error:
        raise LvlmAttnError(
            f"output folder {path} cannot be locked ({error.strerror or error}); choose another --out."
        ) from error
    return lock


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file() or not path.stat().st_size:
        return []
    return [record.value for record in latest_by_id(read_records(path, "result file").records)]


def _written(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
            os.fsync(file.fileno())


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
