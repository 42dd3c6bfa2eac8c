"""The trial itself: what a fault is, that it reaches the functions in use, that one which nothing notices is told."""

import ast
import importlib.util
import os
import subprocess
import sys
from functools import cached_property

import pytest

from tests.mutants.faults import code_with, faults_of
from tests.mutants.judged import JUDGED, PACKAGE, ROOT, listed
from tests.mutants.swapping import Living

MODULE = '''"""A module."""

from functools import cached_property, lru_cache


def larger(a: int, b: int = 1) -> int:
    """The larger of two numbers."""
    if a > b:
        return a
    if b < -1000:
        raise ValueError(f"{b} is below {-1000}")
    return b


class Box:
    """A box."""

    size: int = 3

    @cached_property
    def twice(self) -> int:
        return self.size * 2


@lru_cache
def seen(name: str, *, mark: str = "+") -> str:
    return name + mark
'''
TESTS = """import module


def test_larger():
    assert (module.larger(3, 2), module.larger(2, 3), module.larger(0)) == (3, 3, 1)


def test_twice():
    assert module.Box().twice == 6


def test_seen():
    assert module.seen("a") == "a+"
"""


def texts():
    return [str(fault) for fault in faults_of(MODULE)]


def test_faults_are_where_code_is_and_not_in_words_or_types():
    assert texts() == [
        "larger: `b=1` -> `b=2`",
        "larger: `if a > b:` -> `if a >= b:`",
        "larger: `if a > b:` -> `if a <= b:`",
        "larger: `if b < -1000:` -> `if b <= -1000:`",
        "larger: `if b < -1000:` -> `if b >= -1000:`",
        "larger: `if b < -1000:` -> `if b < 1000:`",
        "larger: `if b < -1000:` -> `if b < -1001:`",
        "larger: `raise ValueError(f'{b} is below {-1000}')` -> `pass`",
        "Box.twice: `return self.size * 2` -> `return self.size / 2`",
        "Box.twice: `return self.size * 2` -> `return self.size * 3`",
        "seen: `mark='+'` -> `mark='XX+XX'`",
        "seen: `return name + mark` -> `return name - mark`",
    ]


@pytest.mark.parametrize(
    ("expression", "others"),
    [
        ("a and b", {"a or b", "a", "b"}),
        ("not x", {"x"}),
        ("x.sum(0, a=True)", {"x.sum(0)", "x.sum(a=True)", "x.sum(1, a=True)", "x.sum(0, a=False)"}),
        ("len(x)", set()),
        ("x[1:]", {"x[:]", "x[2:]"}),
        ("[i for i in x if i]", {"[i for i in x]"}),
        ("max(x, y)", {"min(x, y)", "max(x)"}),
        ("a if b else c", {"a if not b else c"}),
        ("cast('int', 1)", {"cast('int', 2)"}),
        ("a is None", {"a is not None"}),
    ],
)  # fmt: skip
def test_what_stands_instead(expression, others):
    source = f"def f():\n    return {expression}\n"
    trees = [code_with(source, "f.py", fault)[1] for fault in faults_of(source)]
    assert sorted(ast.unparse(tree.body[0].body[0].value) for tree in trees) == sorted(others)


def test_a_fault_reaches_functions_properties_defaults_and_caches(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    larger, box, seen = module.larger, module.Box, module.seen
    seen.__wrapped__.__module__ = seen.__module__ = "lvlm_attn.module"  # caches of the package are emptied
    faults = dict(zip(texts(), faults_of(MODULE)))
    living = Living({str(path)})

    def take(text):
        living.take(MODULE, str(path), faults[text])

    assert (larger(0), box().twice, seen("a")) == (1, 6, "a+")
    take("larger: `b=1` -> `b=2`")
    assert (larger(0), larger(0, 0)) == (2, 0)
    take("Box.twice: `return self.size * 2` -> `return self.size * 3`")
    assert isinstance(vars(box)["twice"], cached_property)
    assert box().twice == 9
    take("seen: `mark='+'` -> `mark='XX+XX'`")
    assert seen("a") == "aXX+XX"


def test_what_no_test_notices_is_told(tmp_path):
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "test_module.py").write_text(TESTS)
    run = (
        "import sys, pathlib, pytest; from tests.mutants.trial import Trial;"
        "path = pathlib.Path(sys.argv[1]); trial = Trial([path / 'module.py']);"
        "pytest.main(['-q', '-s', '--tb=native', '-pno:cacheprovider', str(path)], plugins=[trial]);"
        "print(trial.total, *trial.survived.values(), sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", run, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    total, survived = done.stdout.splitlines()[-2:]
    assert total.endswith(": 12})"), done.stdout + done.stderr
    assert eval(survived) == [
        "larger: `if a > b:` -> `if a >= b:`",
        "larger: `if b < -1000:` -> `if b <= -1000:`",
        "larger: `if b < -1000:` -> `if b < -1001:`",
        "larger: `raise ValueError(f'{b} is below {-1000}')` -> `pass`",
    ]


def test_modules_and_tests_that_are_named_exist():
    names = [name for group in JUDGED for name in group.modules]
    assert len(names) == len(set(names))
    assert all((PACKAGE / f"{name}.py").is_file() for name in names)
    assert all((ROOT / path.split("::")[0]).exists() for group in JUDGED for path in group.tests)
    assert set(listed()) <= set(names)
