"""What CONTRIBUTING says of files and functions: small, or with a reason."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("lvlm_attn", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
)
LARGEST, LONGEST = 20_480, 60
REASON = "Long because"


def long_functions(text: str) -> list[str]:
    """Functions of more than `LONGEST` lines that give no reason, in a comment above them or in their docstring."""
    lines = text.splitlines()
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            first = min([node.lineno, *(item.lineno for item in node.decorator_list)])
            head = [lines[first - 2] if first > 1 else "", ast.get_docstring(node) or ""]
            if node.end_lineno - node.lineno >= LONGEST and not any(REASON in part for part in head):
                found.append(node.name)
    return found


def test_files_are_small():
    assert FILES
    assert {str(path): path.stat().st_size for path in FILES if path.stat().st_size > LARGEST} == {}


def test_long_functions_say_why():
    found = {str(path.relative_to(ROOT)): long_functions(path.read_text("utf-8")) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_reason_is_found_where_it_stands():
    body = "".join(f"    x = {number}\n" for number in range(LONGEST))
    assert long_functions(f"def f():\n{body}") == ["f"]
    assert long_functions(f"def f():\n{body}".replace("    x = 0\n", "")) == []
    assert long_functions(f"# Long because.\ndef f():\n{body}") == []
    assert long_functions(f"# Long because.\n@g\ndef f():\n{body}") == []
    assert long_functions(f'def f():\n    """Long because."""\n{body}') == []
    assert long_functions(f"# Long because.\n\ndef f():\n{body}") == ["f"]
