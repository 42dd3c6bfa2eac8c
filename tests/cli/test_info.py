"""`methods`, plugins on the command line, and `python -m lvlm_attn`."""

import json
import subprocess
import sys

import pytest

from lvlm_attn import families
from lvlm_attn._version import __version__
from lvlm_attn.cli.info import wrapped
from lvlm_attn.hooks import catalogue, plugins
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


def test_what_stands_in_backticks_is_not_broken():
    for width in range(20, 60):
        lines = wrapped("Words and then `lvlm-attn methods` and at long last `a b` in the end", width)
        text = "\n".join(lines)
        assert "`lvlm-attn methods`" in text or width < 38
        assert "`a b`" in text
        assert max(map(len, lines)) <= width
        assert (
            " ".join(lines) == "Words and then `lvlm-attn methods` and at long last `a b` in the end"
            or width < 38
        )


def test_sinks_say_what_the_number_is(capsys):
    code, out, err = call(capsys, "sinks", "--model", "toy", "--device", "cpu")
    assert code == 0, err
    assert "(sink score 10.6)" in out
    assert "at most 11.3" in " ".join(out.split())


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


def test_doctor_lists_plugins_with_what_they_brought(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    monkeypatch.setattr(plugins, "BROUGHT", {})
    assert "--plugin FILE" in json.loads(call(capsys, "doctor", "--json")[1])["plugins"]
    path = tmp_path / "still.py"
    path.write_text(
        QUIET.replace("{name}", "stilled")
        + "import dataclasses\nFAMILY = dataclasses.replace(la.models()['llava'], name='stilled_vlm')\n"
    )
    code, out, err = call(capsys, "--plugin", path, "doctor")
    assert code == 0, err
    assert f"  {path} method stilled; family stilled_vlm\n" in out


@pytest.mark.parametrize(
    "command", [["methods", "boost"], ["eval", "pope", "--model", "toy", "--data", "toy"]]
)
def test_an_unknown_method_hints_at_the_plugin(capsys, command):
    given = command if command[0] == "methods" else [*command, "--intervene", "boost"]
    assert "--plugin FILE" in refused(capsys, *given)


TOLD = {
    "before": "Source: A. Author, 2026.\n\n    More words.\n\n    Args:\n        head: which head.",
    "after": "More words.\n\n    Args:\n        head: which head.\n\n    Source: A. Author,\n    2026.",
    "several": "More words.\n\n    Sources: A. Author, 2026.\n\n    Args:\n        head: which head.",
    "module": "More words.\n\n    Args:\n        head: which head.",
}


@pytest.mark.parametrize("where", TOLD)
def test_the_source_of_ones_own_method_is_read_from_its_docstring(capsys, tmp_path, monkeypatch, where):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    name = f"sourced_{where}"
    text = QUIET.replace("{name}", name)
    text = text.replace("Silences one head.", f"Silences one head.\n\n    {TOLD[where]}\n    ")
    path = tmp_path / f"{name}.py"
    path.write_text(("'''Ours.\n\nSource: A. Author, 2026.\n'''\n" if where == "module" else "") + text)
    code, out, err = call(capsys, "--plugin", path, "methods", name)
    assert code == 0, err
    assert "Source: A. Author, 2026." in out.splitlines()
    assert out.count("A. Author") == out.count("More words.") == 1
    assert "      which head." in out.splitlines()
