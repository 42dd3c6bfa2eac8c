"""What there is to know about the methods without importing them: read off their source.

Importing a method imports torch, which takes seconds; a list of names and parameters should not. Everything here comes
from the dataclass, its docstring and its checks, so there is nothing to keep in step.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lvlm_attn.interventions.written import format_value

_HOOKS = Path(__file__).parent
_PACKAGE = _HOOKS.parent
_MUST = re.compile(r"\s*must be (.+?)(?:[.;]|$)")
_CHECKS = ("need_number", "need_whole", "need_wholes", "need_words", "need_choice", "need_flag")
_PUBLISHED = {"Preset": ("settings", "source", "generate"), "Published": ("name", "settings", "source")}
"""What a preset and what is published for a model hold, in order."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a method.

    Attributes:
        name: as it is written.
        default: as `parse` reads it; None where it has to be given.
        kind: number, whole number, true or false, text, layers, ...
        allowed: the values it may take, in words; empty where nothing is checked.
        text: what it does.
        in_code_only: whether it cannot be written as text.
    """

    name: str
    default: str | None
    kind: str
    allowed: str
    text: str
    in_code_only: bool = False


@dataclass(frozen=True)
class Setting:
    """Settings that a source publishes.

    Attributes:
        name: of the preset, or `auto` and the model for which they are taken by themselves.
        settings: as `parse` reads them.
        generate: options of `generate` that the source sets with them, likewise.
        source: where they are from.
    """

    name: str
    settings: str
    generate: str
    source: str


@dataclass(frozen=True)
class Method:
    """A method.

    Attributes:
        name: as `parse` reads it.
        class_name: its class, in `lvlm_attn` for those of this package.
        summary: the first sentence of its docstring.
        text: the rest of it, up to the parameters.
        parameters: in the order of the dataclass.
        presets: settings by name, and those for single models.
        source: where it was published, from the paragraph `Source: ...` of its docstring, or of its module's.
        example: one written form.
    """

    name: str
    class_name: str
    summary: str
    text: str
    parameters: tuple[Parameter, ...]
    presets: tuple[Setting, ...]
    source: str
    example: str


def index() -> dict[str, Method]:
    """The methods of this package by name, sorted; nothing is imported.

    Example:
        >>> index()["vhr"].parameters[0]
        Parameter(name='alpha', default='2.0', kind='number', allowed='at least 0', text='...')  # doctest: +SKIP
    """
    listed = _catalogued((_HOOKS / "catalogue.py").read_text("utf-8"))
    found = {
        method.name: method
        for path in sorted(_HOOKS.rglob("*.py"))
        for method in methods_in(path.read_text("utf-8"))
        if method.class_name in listed
    }
    return dict(sorted(found.items()))


def _catalogued(source: str) -> set[str]:
    """The classes in the catalogue's table."""
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.AnnAssign)
            and ast.unparse(node.target) == "_METHODS"
            and node.value is not None
        ):
            return {item.id for item in ast.walk(node.value) if isinstance(item, ast.Name)}
    return set()


def method_of(kind: type) -> Method:
    """A method of someone else's, from the file that defines its class.

    Where the file cannot be read, name and docstring are what is left.
    """
    try:
        path = inspect.getsourcefile(kind)
        text = Path(path).read_text("utf-8") if path else ""
    except (OSError, TypeError):
        text = ""
    for method in methods_in(text):
        if method.class_name == kind.__name__:
            return method
    sections = _sections(inspect.getdoc(kind) or "")
    summary, _, rest = sections[""].partition("\n")
    source = " ".join(sections.get("Source", "").split())
    return Method(str(getattr(kind, "name", "")), kind.__name__, summary, rest.strip(), (), (), source, "")


def methods_in(source: str) -> Iterator[Method]:
    """The methods a file defines: its classes with a `name: ClassVar[str]`."""
    tree = ast.parse(source)
    constants = _constants(tree)
    module = ast.get_docstring(tree) or ""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and (name := _name_of(node)):
            yield _method(node, name, constants, module)


def _constants(tree: ast.Module) -> dict[str, Any]:
    """Module constants that are plain data, and `Literal` types, those imported from this package among them."""
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{_PACKAGE.name}."):
            path = _PACKAGE.parent.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            wanted = {item.name for item in node.names if not item.name[0].islower()}
            if wanted and path.is_file() and any(f"\n{name}" in path.read_text("utf-8") for name in wanted):
                theirs = _constants(ast.parse(path.read_text("utf-8")))
                found.update({name: theirs[name] for name in wanted if name in theirs})
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name) or value is None:
            continue
        if isinstance(value, ast.Subscript) and ast.unparse(value.value) == "Literal":
            found[target.id] = value
            continue
        with contextlib.suppress(ValueError):
            found[target.id] = _value(value, found)
    return found


def _name_of(node: ast.ClassDef) -> str | None:
    for item in node.body:
        target = item.target if isinstance(item, ast.AnnAssign) else None
        if isinstance(item, ast.Assign) and len(item.targets) == 1:
            target = item.targets[0]  # type: ignore[assignment]
        if isinstance(target, ast.Name) and target.id == "name":
            value = getattr(item, "value", None)
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                return value.value or None
    return None


def _method(node: ast.ClassDef, name: str, constants: Mapping[str, Any], module: str) -> Method:
    sections = _sections(ast.get_docstring(node) or "")
    summary, _, rest = sections.get("", "").partition("\n")
    told = _described(sections.get("Args", ""))
    ranges = _ranges(node, constants)
    paragraph = re.search(r"(?:Source|After)\b.*?(?=\n\n|\Z)", module, re.DOTALL)
    source = sections.get("Source") or (paragraph.group() if paragraph else module.partition("\n")[2])
    example = re.search(rf"'({re.escape(name)}(?::[^']*)?)'", sections.get("Example", ""))
    return Method(
        name=name,
        class_name=node.name,
        summary=summary.strip(),
        text=rest.strip(),
        parameters=tuple(_parameters(node, constants, told, ranges)),
        presets=tuple(_presets(constants)),
        source=" ".join(source.split()).removeprefix("Source: "),
        example=example.group(1) if example else name,
    )


def _sections(text: str) -> dict[str, str]:
    """A Google-style docstring by its headings; what stands before the first is under an empty one."""
    found: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        if source := re.fullmatch(r"Sources?:(.*)", line):
            current = "Source"
            found[current] = [source.group(1)]
            continue
        if current == "Source" and not line.strip():
            current = ""
        heading = re.fullmatch(r"(Args|Attributes|Raises|Returns|Example|Examples|Note|Notes):", line)
        if heading:
            current = heading.group(1).removesuffix("s") if line.startswith("Examples") else heading.group(1)
            found[current] = []
            continue
        found[current].append(line)
    return {key: inspect.cleandoc("\n".join(lines)) for key, lines in found.items()}


def _described(text: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current = ""
    for line in text.splitlines():
        entry = re.match(r"(\*{0,2}\w+)(?: \([^)]*\))?: (.*)", line)
        if entry:
            current = entry.group(1)
            found[current] = [entry.group(2)]
        elif current:
            found[current].append(line.strip())
    return {key: " ".join(lines).strip() for key, lines in found.items()}


def _parameters(
    node: ast.ClassDef, constants: Mapping[str, Any], told: Mapping[str, str], ranges: Mapping[str, str]
) -> Iterator[Parameter]:
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if annotation.startswith("ClassVar"):
            continue
        name = item.target.id
        options = {}
        value = item.value
        if isinstance(value, ast.Call):
            options = {key.arg: key.value for key in value.keywords}
            value = options.get("default")
            if ast.unparse(item.value) == "preset_field()":  # type: ignore[arg-type]
                value = ast.Constant("auto")
                ranges = {**ranges, name: ", ".join(("auto", *constants.get("PRESETS", ())))}
        hidden = options.get("repr")
        choices = _choices(item.annotation, constants)
        kind = "layers" if name == "layers" else _kind(annotation, bool(choices))
        yield Parameter(
            name=name,
            default=None if value is None else _default(name, value, constants),
            kind=kind,
            allowed=ranges.get(name) or choices or "",
            text=told.get(name, ""),
            in_code_only=isinstance(hidden, ast.Constant) and hidden.value is False,
        )


def _presets(constants: Mapping[str, Any]) -> Iterator[Setting]:
    """What a module has as `PRESETS` and `BY_MODEL`."""
    named = [(name, one) for name, one in constants.get("PRESETS", {}).items()]
    for name, one in [*named, *((f"auto, {one['name']}", one) for one in constants.get("BY_MODEL", ()))]:
        settings, generate = (_joined(one.get(key, {})) for key in ("settings", "generate"))
        yield Setting(name, settings, generate, one["source"])


def _joined(values: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={format_value(key, value)}" for key, value in values.items())


def _default(name: str, value: ast.expr, constants: Mapping[str, Any]) -> str:
    try:
        return format_value(name, _value(value, constants))
    except ValueError:
        return ast.unparse(value)


def _choices(annotation: ast.expr, constants: Mapping[str, Any]) -> str:
    found = constants.get(ast.unparse(annotation), annotation)
    if isinstance(found, ast.Subscript) and ast.unparse(found.value) == "Literal":
        return ", ".join(str(ast.literal_eval(item)) for item in getattr(found.slice, "elts", [found.slice]))
    return ""


def _kind(annotation: str, is_choice: bool) -> str:
    if is_choice:
        return "one of"
    for pattern, kind in (
        (r"^Layers$", "layers"),
        (r"^bool$", "true or false"),
        (r"^int\b(?! \|.*float)", "whole number"),
        (r"^float\b", "number"),
        (r"^str\b", "text"),
        (r"^(tuple|Sequence|list)\[int", "list of whole numbers"),
        (r"^(tuple|Sequence|list)", "list"),
    ):
        if re.search(pattern, annotation):
            return kind + (" or none" if "None" in annotation and kind != "layers" else "")
    return annotation


def _ranges(node: ast.ClassDef, constants: Mapping[str, Any]) -> dict[str, str]:
    """What the checks of a class demand of each parameter, in words: calls of checks first, then messages."""
    found: dict[str, str] = {}
    for item in ast.walk(node):
        if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in _CHECKS:
            if isinstance(item.args[1], ast.Constant):  # else a loop over a table, which is read as such
                name, text = _checked(item, constants)
                found[name] = text
        elif isinstance(item, ast.Compare) and isinstance(item.ops[0], ast.NotIn):
            choices = constants.get(ast.unparse(item.comparators[0]))
            name = ast.unparse(item.left).removeprefix("self.")
            if isinstance(choices, (dict, tuple)):
                found[name] = ", ".join(map(str, choices))
        elif isinstance(item, ast.For):
            listed = constants.get(ast.unparse(item.iter).removesuffix(".items()"))
            if isinstance(listed, dict):
                found.update({name: ", ".join(map(str, choices)) for name, choices in listed.items()})
    for item in ast.walk(node):
        keys = _loop_keys(item) if isinstance(item, ast.For) else [None]
        for inner in ast.walk(item) if isinstance(item, ast.For) else [item]:
            if isinstance(inner, ast.JoinedStr) and (demand := _demand(inner)):
                for key in keys:
                    found.setdefault(key or demand[0], demand[1])
    return found


@cache
def _checks() -> dict[str, Any]:
    """The constants of the checks."""
    return _constants(ast.parse((_PACKAGE / "interventions" / "checks.py").read_text("utf-8")))


def _checked(call: ast.Call, constants: Mapping[str, Any]) -> tuple[str, str]:
    function = call.func.id if isinstance(call.func, ast.Name) else ""
    name = str(ast.literal_eval(call.args[1]))
    options = {key.arg: key.value for key in call.keywords}
    if function == "need_flag":
        return name, "true or false"
    if function == "need_choice":
        return name, ", ".join(map(str, _value(call.args[2], constants)))
    remark = options["remark"].value if isinstance(options.get("remark"), ast.Constant) else ""  # type: ignore[attr-defined]
    if function == "need_wholes":
        return name, f"from 0 on, as in {ast.literal_eval(options['example'])}"
    if function == "need_words":
        return name, "some words"
    least = call.args[2] if len(call.args) > 2 else options.get("least")
    most = call.args[3] if len(call.args) > 3 else options.get("most")
    words = [("at least", least), ("above", options.get("above")), ("at most", most)]
    bounds = [f"{word} {_value(bound, constants):g}" for word, bound in words if bound is not None]
    if most is None and function == "need_number":
        bounds.append(f"at most {_checks()['MOST_GAIN']:g}")
    return name, " and ".join(bounds) + (f"; {remark}" if remark else "")


def _value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    """A literal whose parts may be names of constants.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _PUBLISHED:
        return dict(zip(_PUBLISHED[node.func.id], [_value(part, constants) for part in node.args]))
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        return "".join(str(_value(part, constants)) for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return _value(node.left, constants) - _value(node.right, constants)
    if isinstance(node, ast.Tuple | ast.List):
        return tuple(_value(item, constants) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {
            ast.literal_eval(key): _value(value, constants)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    return ast.literal_eval(node)


def _loop_keys(loop: ast.For) -> list[str]:
    """The names a check loops over: `for key in ("a", "b")` or `for key, low, high in (("a", 0, 1), ...)`."""
    try:
        listed = ast.literal_eval(loop.iter)
    except ValueError:
        return []
    return [item for item in listed if isinstance(item, str)] if isinstance(listed, (tuple, list)) else []


def _demand(text: ast.JoinedStr) -> tuple[str, str] | None:
    """The parameter a message names (`name=...`, empty in a loop) and what it says it must be."""
    parts = text.values
    for place, part in enumerate(parts[:-1]):
        before = parts[place - 1] if place else None
        if not isinstance(part, ast.FormattedValue) or not isinstance(before, ast.Constant):
            continue
        name = re.search(r"(\w*)=$", str(before.value))
        rest = "".join(
            str(item.value) if isinstance(item, ast.Constant) else "\0" for item in parts[place + 1 :]
        )
        must = _MUST.match(rest)
        if name and must and "\0" not in must.group(1):
            return name.group(1), must.group(1)
    return None
