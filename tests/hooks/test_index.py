"""What is read off the source of the methods is what the classes say when they are imported."""

import dataclasses
import inspect

import pytest

import lvlm_attn as la
from lvlm_attn.hooks.index import index, method_of, methods_in
from lvlm_attn.interventions.base import parameters
from lvlm_attn.interventions.written import format_value

FOUND = index()


def test_every_method_is_found_under_its_name():
    assert {name: method.class_name for name, method in FOUND.items()} == {
        name: kind.__name__ for name, kind in la.methods().items() if kind.__module__.startswith("lvlm_attn.")
    }


@pytest.mark.parametrize("name", FOUND)
def test_parameters_and_defaults_are_those_of_the_dataclass(name):
    method, kind = FOUND[name], la.methods()[name]
    fields = parameters(kind)
    assert [item.name for item in method.parameters] == [item.name for item in fields]
    for item, field in zip(method.parameters, fields):
        if item.in_code_only:
            continue
        required = field.default is dataclasses.MISSING
        assert (item.default is None) == required
        if not required:
            written = format_value(field.name, field.default)
            parsed = la.parse(f"{name}:{item.name}={item.default}")
            assert item.default.strip('"') == written.strip('"').strip("'")
            assert getattr(parsed[0], item.name) == getattr(kind(), item.name)


@pytest.mark.parametrize("name", FOUND)
def test_everything_is_explained(name):
    method = FOUND[name]
    assert method.summary == inspect.getdoc(la.methods()[name]).split("\n")[0]
    assert method.source
    for item in method.parameters:
        assert item.text
        assert item.allowed or item.in_code_only or item.kind.split()[0] in ("layers", "list", "text"), item
    assert str(la.parse(method.example)[0]).split(":")[0] == name


def test_ranges_are_the_ones_that_are_checked():
    allowed = {f"{m.name}.{p.name}": p.allowed for m in FOUND.values() for p in m.parameters}
    assert allowed["var.removed_fraction"] == "at least 0 and at most 1"
    assert allowed["dola.beta"] == "above 0 and at most 1"
    assert allowed["vhr.vhd_power"].startswith("at least 1 and at most 2; 2 for squared")
    assert allowed["crosslmm.rule"] == "R1, R2"
    assert allowed["mma.strength"] == "at least 0 and at most 1; 0 changes nothing"


def test_methods_of_others_without_a_readable_file():
    kind = type("Made", (la.Intervention,), {"name": "made", "__doc__": "Made up.\n\nOn the fly."})
    method = method_of(kind)
    assert (method.name, method.summary, method.text) == ("made", "Made up.", "On the fly.")
    layers = "class B(Intervention):\n    name = 'b'\n    layers: str | tuple[int, ...] | None = None\n"
    assert [item.kind for item in next(iter(methods_in(layers))).parameters] == ["layers"]
    assert list(methods_in("class A:\n    name = ''\nclass B:\n    pass\n")) == []
