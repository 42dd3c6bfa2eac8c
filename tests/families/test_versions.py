"""Versions of transformers outside the range are refused before anything runs."""

import tomllib
from pathlib import Path

import pytest
import transformers

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import family_of
from lvlm_attn.families.versions import LOWEST, TOO_NEW
from tests.tiny import tiny_config


@pytest.mark.parametrize("version", ["5.24.0", "5.24.0.dev0", "6.0", "5.16.3", "4.57.1"])
def test_other_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    with pytest.raises(UnsupportedError, match=rf"transformers {version} is not supported.*>=5\.17,<5\.24"):
        family_of(tiny_config("llava"))


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.23.4"])
def test_versions_of_the_range_are_taken(monkeypatch, version):
    monkeypatch.setattr(transformers, "__version__", version)
    assert family_of(tiny_config("llava")).name == "llava"


def test_the_package_asks_for_the_same_range():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    low, new = (".".join(map(str, bound)) for bound in (LOWEST, TOO_NEW))
    assert f"transformers>={low},<{new}" in project["dependencies"]
