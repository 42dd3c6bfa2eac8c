"""One table of names in each package that re-exports some, and what type checkers see agrees with it."""

import ast
import importlib
import inspect

import pytest

PACKAGES = ["lvlm_attn", "lvlm_attn.interventions"]


def seen_by_type_checkers(package):
    tree = ast.parse(inspect.getsource(package))
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    assert len(blocks) == 1
    return {
        name.asname: node.module.removeprefix("lvlm_attn.")
        for node in blocks[0].body
        for name in node.names
        if name.asname == name.name
    }


@pytest.mark.parametrize("name", PACKAGES)
def test_the_table_the_imports_and_the_names_agree(name):
    package = importlib.import_module(name)
    assert seen_by_type_checkers(package) == package._HOMES
    assert set(package.__all__) - {"__version__"} == set(package._HOMES)
    assert set(package._HOMES) <= set(dir(package))


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_defined_where_the_table_says(name):
    package = importlib.import_module(name)
    for key, home in package._HOMES.items():
        found = getattr(package, key)
        assert found is getattr(importlib.import_module(f"lvlm_attn.{home}"), key)
        assert getattr(found, "__module__", None) in (f"lvlm_attn.{home}", None)


def test_an_unknown_name_is_an_attribute_error():
    for name in PACKAGES:
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = importlib.import_module(name).nothing
