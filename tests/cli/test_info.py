"""`methods`, plugins on the command line, and `python -m lvlm_attn`."""

import json
import subprocess
import sys

import pytest

from lvlm_attn._version import __version__
from lvlm_attn.hooks import catalogue
from tests.cli.test_cli import call, refused
from tests.hooks.test_plugins import QUIET


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "var"], ["methods", "pai", "--json"]])
def test_methods_import_neither_torch_nor_transformers(arguments):
    code = (
        "import sys\nfrom lvlm_attn.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python_m_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "lvlm_attn", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"lvlm-attn {__version__}\n"


def test_a_method_is_explained_within_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in (None, "var", "crosslmm", "mma"):
        code, out, _ = call(capsys, "methods", *([name] if name else []))
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80
    out = " ".join(call(capsys, "methods", "var")[1].split())
    for part in (
        "rho=0.5 (number: at least 0 and at most 1)",
        "hallucination removed_fraction=0.6,rho=0.5",
        "arXiv 2503.03321",
    ):
        assert part in out  # fmt: skip
    assert "Did you mean 'var'" in refused(capsys, "methods", "vra")
    told = json.loads(call(capsys, "methods", "vhr", "--json")[1])
    assert told["parameters"][0]["default"] == "2.0"


def test_plugins_may_be_named_anywhere(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    path = tmp_path / "quiet.py"
    path.write_text(QUIET.replace("{name}", "hushed"))
    for arguments in (
        ["--plugin", path, "methods", "hushed"],
        ["methods", "--plugin", path, "hushed"],
        ["methods", "hushed", f"--plugin={path}"],
    ):
        code, out, err = call(capsys, *arguments)
        assert code == 0, err
        assert "Silences one head." in out
        assert "head=1" in out
    assert "does not exist" in refused(capsys, "models", "--plugin", tmp_path / "no.py")
