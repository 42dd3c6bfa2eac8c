"""Methods of other people: from files and from entry points."""

from importlib import metadata

import pytest

import lvlm_attn as la
from lvlm_attn import families
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.hooks import catalogue, entry_points, plugins

QUIET = """
from dataclasses import dataclass
from typing import ClassVar
import lvlm_attn as la

@dataclass(frozen=True)
class Quiet(la.Intervention):
    '''Silences one head.'''
    name: ClassVar[str] = "{name}"
    head: int = 1
"""


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(catalogue, "_METHODS", dict(catalogue._METHODS))
    monkeypatch.setattr(entry_points, "_loaded", set())


def written(path, text=QUIET, name="quiet"):
    path.write_text(text.replace("{name}", name))
    return path


def test_a_file_registers_its_methods(tmp_path):
    path = written(tmp_path / "quiet.py")
    assert plugins.load_plugin(path) == ("quiet",)
    assert plugins.load_plugin(path) == ("quiet",)
    assert str(la.parse("quiet:head=2")[0]) == "quiet:head=2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "defines no method"),
        ("\n\nraise KeyError('y')", "KeyError: 'y', line 3"),
        ("def f(:", "SyntaxError.*line 1"),
        (QUIET.replace("{name}", "var"), "'var' is taken by VAR"),
    ],
)
def test_files_that_bring_nothing_are_refused(tmp_path, text, message):
    with pytest.raises(LvlmAttnError, match=message):
        plugins.load_plugin(written(tmp_path / "p.py", text))
    with pytest.raises(LvlmAttnError, match="does not exist"):
        plugins.load_plugin(tmp_path / "none.py")
    with pytest.raises(LvlmAttnError, match="is a folder; name a Python file in it"):
        plugins.load_plugin(tmp_path)


@pytest.mark.parametrize(
    "ending", ["", "la.register_family(FAMILY)", "la.register_family(FAMILY)\ndel FAMILY"]
)
def test_a_file_registers_its_families(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    text = "import dataclasses\nimport lvlm_attn as la\nknown = la.models()['llava']\n"
    path = written(
        tmp_path / "family.py", f"{text}FAMILY = dataclasses.replace(known, name='theirs')\n{ending}"
    )
    assert plugins.load_plugin(path) == ()
    assert plugins.load_plugin(path) == ()
    assert la.models()["theirs"].title == "LLaVA"


def test_a_family_whose_name_is_taken_is_refused(tmp_path):
    text = "import dataclasses\nimport lvlm_attn as la\n"
    path = written(
        tmp_path / "f.py", f"{text}OURS = dataclasses.replace(la.models()['llava'], title='Other')"
    )
    with pytest.raises(LvlmAttnError, match="'llava' is registered already"):
        plugins.load_plugin(path)


def test_entry_points_are_loaded_once_and_failures_are_told(tmp_path, monkeypatch):
    written(tmp_path / "someone.py", QUIET + "\ndef everything():\n    la.register(type('Other', (la.Intervention,),"
            " {'name': 'other'}))\n", "theirs")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        metadata.EntryPoint("a", "someone:Quiet", entry_points.GROUP),
        metadata.EntryPoint("b", "someone:everything", entry_points.GROUP),
        metadata.EntryPoint("c", "nobody:Nothing", entry_points.GROUP),
    ]
    monkeypatch.setattr(entry_points, "entry_points", lambda: points)
    with pytest.warns(UserWarning, match=r"'c' \(nobody:Nothing\) could not be loaded"):
        found = la.methods()
    assert {"theirs", "other", "var"} <= set(found)
    assert set(la.methods()) == set(found)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (la.VHR(), "got an object of VHR; pass the class VHR itself"),
        (int, "got <class 'int'>; derive the class of your method from Intervention"),
        ("vhr", "got 'vhr'; derive"),
    ],
)
def test_what_is_no_class_of_a_method_is_not_registered(given, words):
    with pytest.raises(LvlmAttnError, match=f"^register takes a class, and {words}"):
        la.register(given)
