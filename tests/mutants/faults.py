"""The faults of a module: where each is, how it reads, and the code of the module with it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from tests.mutants.operators import instead

# Words for a user, types, and what holds by construction.
SKIPPED = (ast.JoinedStr, ast.Assert)
SHORTEST, LONGEST = 16, 90


@dataclass(frozen=True)
class Fault:
    """One small fault.

    Attributes:
        function: qualified name of the outermost function it is in.
        first: first line of that function, decorators included, as its code object says.
        lines: lines of the statement, or of its head; a test that runs none of them cannot notice. Of a default, those
            of the whole function.
        text: the expression around it, before and after.
        in_defaults: whether it is in a default of the function's arguments.
        place: fields and indices that lead from the module to the node.
        node: what stands there instead.
    """

    function: str
    first: int
    lines: range
    text: str
    in_defaults: bool
    place: tuple[tuple[str, int | None], ...]
    node: ast.AST

    def __str__(self) -> str:
        return f"{self.function}: {self.text}"


def faults_of(source: str) -> list[Fault]:
    """Every fault of a module's functions, in order; those that read alike are numbered."""
    found: list[Fault] = []
    seen: dict[str, int] = {}
    for fault in _walk(ast.parse(source), [], "", None):
        seen[str(fault)] = number = seen.get(str(fault), 0) + 1
        text = fault.text if number == 1 else f"{fault.text} ({number})"
        found.append(Fault(**{**vars(fault), "text": text}))
    return found


def code_with(source: str, path: str, fault: Fault) -> tuple[CodeType, ast.Module]:
    """The module with one fault: its code, and its tree."""
    tree = ast.parse(source)
    _put(tree, fault.place, fault.node)
    ast.fix_missing_locations(tree)
    return compile(tree, path, "exec"), tree


def _walk(node: ast.AST, above: list[tuple], scope: str, function: Any) -> Iterator[Fault]:
    """Goes through a tree; `above` holds `(node, field, index)` of what leads to `node`."""
    for name, value in ast.iter_fields(node):
        many = isinstance(value, list)
        for index, child in enumerate(value if many else [value]):
            if not isinstance(child, ast.AST) or _is_skipped(node, name, child):
                continue
            way = [*above, (node, name, index if many else None)]
            inner, around = scope, function
            if isinstance(child, ast.ClassDef | ast.FunctionDef) and function is None:
                inner = f"{scope}.{child.name}".lstrip(".")
                around = child if isinstance(child, ast.FunctionDef) else None
            if function is not None:
                yield from _faults_at(child, way, scope, function)
            yield from _walk(child, way, inner, around)


def _is_skipped(parent: ast.AST, name: str, child: ast.AST) -> bool:
    if name in ("annotation", "returns", "decorator_list", "bases") or isinstance(child, SKIPPED):
        return True
    if isinstance(parent, ast.Raise):
        return True
    if isinstance(parent, ast.Call) and isinstance(parent.func, ast.Name) and parent.func.id == "cast":
        return child is not parent.args[-1]
    return isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def _faults_at(node: ast.AST, way: list[tuple], scope: str, function: ast.FunctionDef) -> Iterator[Fault]:
    place = tuple((name, index) for _, name, index in way)
    statement = next(n for n in [node, *(above for above, _, _ in reversed(way))] if isinstance(n, ast.stmt))
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) else statement.end_lineno
    lines = range(statement.lineno, max(last or 0, statement.lineno) + 1)
    first = min([function.lineno, *(item.lineno for item in function.decorator_list)])
    in_defaults = any(name in ("defaults", "kw_defaults") for _, name, _ in way)
    if in_defaults:  # they are used by whoever calls the function
        lines = range(first, (function.end_lineno or first) + 1)
    for other in instead(node):
        yield Fault(scope, first, lines, _read(node, other, way), in_defaults, place, other)


def _read(node: ast.AST, other: ast.AST, way: list[tuple]) -> str:
    """The smallest expression around a fault that says where it is, before and after."""
    parent, name, index = way[-1]
    if isinstance(parent, ast.arguments):
        argument = _argument(parent, name, index or 0)
        return f"`{argument}={_shown(node)}` -> `{argument}={_shown(other)}`"
    around = node
    for above, _, _ in reversed(way):
        is_whole = isinstance(around, ast.stmt) or isinstance(above, ast.FunctionDef | ast.arguments)
        if is_whole or len(_shown(around)) >= SHORTEST:
            break
        around = above
    before = _shown(around)
    _put(parent, ((name, index),), other)
    after = _shown(other if around is node else around)
    _put(parent, ((name, index),), node)
    return f"`{_cut(before)}` -> `{_cut(after)}`"


def _argument(arguments: ast.arguments, name: str, index: int) -> str:
    """Which argument a default belongs to; those of arguments in order count from the last."""
    if name == "kw_defaults":
        return arguments.kwonlyargs[index].arg
    return [*arguments.posonlyargs, *arguments.args][index - len(arguments.defaults)].arg


def _shown(node: ast.AST) -> str:
    text = ast.unparse(ast.fix_missing_locations(node))
    return (
        text.splitlines()[0]
        if hasattr(node, "body") and isinstance(node, ast.stmt)
        else " ".join(text.split())
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _put(tree: ast.AST, place: tuple[tuple[str, int | None], ...], node: ast.AST) -> None:
    *way, (name, index) = place
    at: Any = tree
    for field, number in way:
        at = getattr(at, field) if number is None else getattr(at, field)[number]
    if index is None:
        setattr(at, name, node)
    else:
        getattr(at, name)[index] = node
