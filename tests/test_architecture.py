"""What can be checked of docs/architecture.md: its length, its folders and their order, the names it uses."""

import re
import tomllib
from pathlib import Path

import lvlm_attn as la
from lvlm_attn.interventions.sites import ATTENTION_SITES, SITES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lvlm_attn"
TEXT = (ROOT / "docs/architecture.md").read_text("utf-8")
FOLDERS = TEXT[TEXT.index("## Folders") : TEXT.index("## Decisions")]
ROWS = [
    re.findall(r"`([\w.]+?)(?:/|\.py)`", line.split("|")[1])
    for line in FOLDERS.splitlines()
    if line.startswith("| `")
]


def test_three_screens():
    lines = TEXT.splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 130


def test_every_folder_has_its_place():
    listed = [name for row in ROWS for name in row]
    there = {
        item.stem for item in PACKAGE.iterdir() if item.suffix == ".py" or (item / "__init__.py").is_file()
    }
    assert sorted(listed) == sorted(there - {"__init__", "__main__"})


def test_the_order_is_that_of_the_import_contract():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    assert [set(row) for row in ROWS] == [set(re.split(r"\s*\|\s*", layer)) for layer in layers]


def test_modules_that_are_named_exist():
    inside = FOLDERS[FOLDERS.index("In `kernels/`") :]
    kernels = re.findall(r"`(\w+)/?`", inside[: inside.index("`runtime/transformers_private.py`")])
    for name in set(kernels) - {"kernels"}:
        assert (PACKAGE / "kernels" / f"{name}.py").is_file() or (PACKAGE / "kernels" / name).is_dir(), name
    for path in re.findall(r"`((?:runtime|lvlm_attn)/[\w/]+\.py)`", inside):
        assert (ROOT / path).is_file() or (PACKAGE / path).is_file(), path


def test_every_site_and_method_of_the_data_flow_exists():
    flow = TEXT[TEXT.index("```") : TEXT.index("## Folders")]
    words = set(re.findall(r"\w+", flow))
    assert set(SITES) - {*ATTENTION_SITES, "read"} <= words
    in_brackets = [
        name for part in re.findall(r"\(([^()]*)\)", flow) for name in re.findall(r"\b[A-Z]\w+", part)
    ]
    assert in_brackets
    assert [name for name in in_brackets if not hasattr(la, name)] == []
