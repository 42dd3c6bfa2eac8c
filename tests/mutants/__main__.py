"""`python -m tests.mutants [layout/fields ...]`: tries every fault and says which no test notices."""

import argparse
import os
import sys

os.environ["MUTANT_UNDER_TEST"] = "1"

import pytest

import tests.conftest  # noqa: F401  (what takes long to import is there before the first fork)
from tests.mutants.judged import JUDGED, PACKAGE, listed
from tests.mutants.trial import Trial

LEAST = 0.85

parser = argparse.ArgumentParser(prog="python -m tests.mutants")
parser.add_argument("modules", nargs="*", help=f"some of {', '.join(n for g in JUDGED for n in g.modules)}")
parser.add_argument("--only", nargs="*", default=[], help="parts of the texts of faults")
chosen = parser.parse_args()


def run() -> int:
    """Every group of modules in a process of its own; the number of groups that fall short."""
    short = 0
    for group in JUDGED:
        names = [name for name in group.modules if not chosen.modules or name in chosen.modules]
        if names:
            child = os.fork()
            if child == 0:
                os._exit(tried(names, group.tests))
            short += os.waitpid(child, 0)[1] != 0
    return short


def tried(names: list[str], tests: tuple[str, ...]) -> int:
    """Prints what became of the faults of some modules; 1 where that falls short, or is not what is listed."""
    trial = Trial([PACKAGE / f"{name}.py" for name in names], tuple(chosen.only))
    unused = ("cacheprovider", "xdist", "logging", "warnings")  # half of the time of a small test
    options = ["-q", "-s", "--tb=native", "--assert=plain", *(f"-pno:{name}" for name in unused)]
    if pytest.main([*options, *tests], plugins=[trial]) not in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
        return 1
    bad = 0
    for name, path in zip(names, trial.paths):
        total, survived, known = trial.total[path], set(trial.survived[path]), set(listed().get(name, {}))
        noticed = total - len(trial.survived[path])
        print(f"{name}: {noticed} of {total} noticed", flush=True)
        if chosen.only:
            continue
        new, gone = survived - known, known - survived
        if new:
            print(f"  {len(new)} of those that survived are not in docs/testing.md")
        for fault in sorted(gone):
            print(f"  listed there, but noticed, or no fault any more: {fault}")
        bad += bool(new or gone)
        bad += noticed < LEAST * total
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(run())
