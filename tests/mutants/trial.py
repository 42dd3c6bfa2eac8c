"""The part that runs inside pytest: tests once with a note of the lines they reach, then each fault in a fork."""

import contextlib
import gc
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

from tests.mutants.faults import Fault, faults_of
from tests.mutants.swapping import Living

SPARE_SECONDS = 20
"""What a fork may take beyond three times what its tests took; a loop without end is noticed by it."""
PASSED, OTHERWISE = 0, 1
"""What a fork ends with: no test failed; it ended by itself. Above, the place of the test that failed."""


@dataclass
class Trial:
    """Takes the place of pytest's loop over tests; afterwards `survived` and `total` say what became of each module.

    Args:
        paths: the modules.
        only: parts of the texts of faults, to try those alone; none for all.
    """

    paths: list[Path]
    only: tuple[str, ...] = ()
    survived: dict[Path, list[str]] = field(default_factory=lambda: defaultdict(list))
    total: dict[Path, int] = field(default_factory=lambda: defaultdict(int))
    _reached: dict[tuple[str, int], list[Any]] = field(default_factory=lambda: defaultdict(list))
    _seconds: dict[str, float] = field(default_factory=dict)
    _noticed: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Runs the tests, then the faults."""
        files = set(map(str, self.paths))
        living = Living(files)
        for item in session.items:
            living.forget()
            began = time.perf_counter()
            with self._traced(item):
                if not passes(item):
                    raise pytest.UsageError(f"{item.nodeid} fails without a fault")
            self._seconds[item.nodeid] = time.perf_counter() - began
        self._living = Living(files)
        gc.freeze()
        everything = sorted(session.items, key=self._cost)
        if _fork(lambda: first_failure(everything), self._allowed(everything)) != PASSED:
            raise pytest.UsageError("the tests fail in a fork without a fault")
        for path in self.paths:
            self._try_module(path)
        return True

    def _try_module(self, path: Path) -> None:
        source = path.read_text("utf-8")
        for fault in faults_of(source):
            if self.only and not any(part in str(fault) for part in self.only):
                continue
            began = time.perf_counter()
            items = {item for line in fault.lines for item in self._reached[str(path), line]}
            ordered = sorted(items, key=self._cost)
            self.total[path] += 1
            if not ordered or self._lives(source, path, fault, ordered):
                self.survived[path].append(str(fault))
                spent = time.perf_counter() - began
                print(f"  survived ({len(ordered)} tests, {spent:.1f} s) {fault}", flush=True)

    def _lives(self, source: str, path: Path, fault: Fault, items: list[Any]) -> bool:
        def first_with_it() -> int:
            try:
                self._living.take(source, str(path), fault)
            except (LookupError, ValueError, SyntaxError):  # the trial cannot make this fault
                return PASSED
            return first_failure(items)

        failed = _fork(first_with_it, self._allowed(items))
        if failed > OTHERWISE:
            self._noticed[items[failed - OTHERWISE - 1].nodeid] += 1
        return failed == PASSED

    def _cost(self, item: Any) -> float:
        """Seconds, less for a test that has noticed many faults: what is noticed soon costs little."""
        return self._seconds[item.nodeid] / (1 + self._noticed[item.nodeid])

    def _allowed(self, items: list[Any]) -> int:
        return int(SPARE_SECONDS + 3 * sum(self._seconds[item.nodeid] for item in items))

    @contextlib.contextmanager
    def _traced(self, item: Any) -> Iterator[None]:
        files = set(map(str, self.paths))
        lines: set[tuple[str, int]] = set()

        def on_line(frame: Any, event: str, _: Any) -> Any:
            lines.add((frame.f_code.co_filename, frame.f_lineno))
            return on_line

        def on_call(frame: Any, event: str, argument: Any) -> Any:
            return on_line(frame, event, argument) if frame.f_code.co_filename in files else None

        before = sys.gettrace()
        sys.settrace(on_call)
        try:
            yield
        finally:
            sys.settrace(before)
        for line in lines:
            self._reached[line].append(item)


def passes(item: Any, following: Any = None) -> bool:
    """Whether a test, with its fixtures, does not fail; what `following` shares with it is kept."""
    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def first_failure(items: list[Any]) -> int:
    """Runs tests up to the first that fails: which one, or `PASSED`."""
    for place, (item, following) in enumerate(zip(items, [*items[1:], None])):
        if not passes(item, following):
            return min(OTHERWISE + 1 + place, 255)
    return PASSED


def _fork(check: Callable[[], int], seconds: int) -> int:
    """What `check()` says in a process of its own; `OTHERWISE` if that ends in any other way, or takes too long."""
    child = os.fork()
    if child == 0:
        code = OTHERWISE
        try:
            signal.alarm(seconds)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = check()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else OTHERWISE
