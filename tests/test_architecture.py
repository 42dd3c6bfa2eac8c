"""What can be checked of docs/architecture.md: its length, its folders and their order, the names it uses."""

import ast
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


PROMISED_BY_NOBODY = {
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_compiled_call_impl", "_torchdynamo_orig_callable"),
    *("_has_any_global_hook", "_hf_hook", "_torchdynamo_disable"),
    *(
        "_fused_sdp_choice",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
    ),
    *("_getframe", "_current_frames"),
}
"""Private names of torch, accelerate and Python; those of transformers have a module of their own."""


def test_transformers_private_is_the_one_module_that_reaches_private_names_of_transformers():
    trees = {path: ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for node in ast.walk(tree) for name in _defined(node)}
    found = {
        f"{path.name}: {name}"
        for path, tree in trees.items()
        if path.name != "transformers_private.py"
        for node in ast.walk(tree)
        for name in _reached(node)
        if re.match(r"_[^_]", name) and name not in own | PROMISED_BY_NOBODY
    }
    assert found == set()


def _defined(node):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr] if getattr(node.value, "id", "") in ("self", "cls") else []
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _reached(node):
    if isinstance(node, ast.Attribute):
        return [node.attr]
    is_call = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr")
    return [item.value for item in node.args[1:2] if isinstance(item, ast.Constant)] if is_call else []


def test_every_site_and_method_of_the_data_flow_exists():
    flow = TEXT[TEXT.index("```") : TEXT.index("## Folders")]
    words = set(re.findall(r"\w+", flow))
    assert set(SITES) - {*ATTENTION_SITES, "read"} <= words
    in_brackets = [
        name for part in re.findall(r"\(([^()]*)\)", flow) for name in re.findall(r"\b[A-Z]\w+", part)
    ]
    assert in_brackets
    assert [name for name in in_brackets if not hasattr(la, name)] == []
