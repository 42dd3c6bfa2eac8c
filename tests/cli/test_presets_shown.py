"""`lvlm-attn methods`: what a user is told of the methods and of where their settings are from."""

import json

import pytest

import lvlm_attn as la
from lvlm_attn.hooks.index import index
from lvlm_attn.interventions.presets import HasPresets
from tests.cli.test_cli import call, refused


def test_the_list_reads_at_80_columns(capsys):
    _, out, _ = call(capsys, "methods")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert set(la.methods()) <= {line.split(" ")[0] for line in out.splitlines()}


@pytest.mark.parametrize("name", la.methods())
def test_a_method_says_where_its_numbers_are_from(capsys, name):
    _, out, _ = call(capsys, "methods", name)
    kind = la.methods()[name]
    joined = " ".join(out.split())
    if issubclass(kind, HasPresets):
        for title, preset in kind.presets.items():
            assert f" {title} " in joined
            assert f"From: {preset.source}" in joined
        for one in kind.by_model:
            assert f" auto, {one.model} " in joined
            assert f"From: {one.source}" in joined
    assert all(len(line) <= 80 for line in out.splitlines())


@pytest.mark.parametrize("name", la.methods())
def test_presets_are_described_as_they_are(name):
    """What is read off the source is what the class has."""
    kind = la.methods()[name]
    presets = dict(getattr(kind, "presets", {}))
    told = {one.name: one for one in index()[name].presets if not one.name.startswith("auto")}
    assert told.keys() == presets.keys()
    for title, one in told.items():
        assert la.parse(f"{name}:{one.settings}") == (kind(**presets[title].settings),)
        assert one.source == presets[title].source


def test_a_method_as_json(capsys):
    _, out, _ = call(capsys, "methods", "frozen_visual", "--json")
    found = json.loads(out)
    assert found["name"] == "frozen_visual"
    assert len([row for row in found["presets"] if row["name"].startswith("auto")]) == 4


def test_an_unknown_method_suggests_the_nearest(capsys):
    assert "'var'" in refused(capsys, "methods", "vra")


def test_defaults_are_written_as_they_are_read(capsys):
    _, out, _ = call(capsys, "methods", "--json")
    for row in json.loads(out):
        if row["parameters"] and "adapter" not in row["parameters"]:
            assert la.parse(f"{row['name']}:{row['parameters']}") == (la.methods()[row["name"]](),)
