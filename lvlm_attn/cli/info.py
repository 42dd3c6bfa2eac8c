"""`lvlm-attn methods`, `models` and `sinks`: what there is, and where a model keeps its attention sinks."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterator
from typing import Annotated

import typer

from lvlm_attn.cli.common import Device, DeviceMap, Dtype, Json, Model, Plugin, load_model, print_json
from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.core.tables import Table, show, terminal_width
from lvlm_attn.hooks.index import Method, Parameter, index, method_of

_GLUE = {ord(" "): "\ue000", ord("-"): "\ue001"}
_UNGLUE = {0xE000: " ", 0xE001: "-"}
_LAYERS = "none, a number, a range like 18..31, a slice like 2:-1, or a list of them in brackets"


def methods(
    name: Annotated[
        str | None, typer.Argument(help="A method to explain, such as `var`.", show_default=False)
    ] = None,
    plugin: Plugin = None,
    as_json: Json = False,
) -> None:
    """List the methods with their parameters, or explain one.

    Example: lvlm-attn methods var
    """
    known = _known()
    if name is not None:
        if name not in known:
            raise LvlmAttnError(
                f"there is no method named {name!r}.{closest(name, known)} "
                f"The methods are {', '.join(known)}. One of your own needs --plugin FILE."
            )
        if as_json:
            print_json(dataclasses.asdict(known[name]))
            return
        typer.echo("\n".join(_explained(known[name])))
        return
    if as_json:
        print_json(
            [
                {"name": item.name, "parameters": _defaults(item), "summary": item.summary}
                for item in known.values()
            ]
        )
        return
    for item in known.values():
        head = wrapped(f"{item.name}  {item.summary}", terminal_width(), subsequent_indent="    ")
        typer.echo("\n".join(head))
        if item.parameters:
            typer.echo("\n".join(_at_commas(f"    {item.name}:{_defaults(item)}", 8)))
    typer.echo("\n`lvlm-attn methods NAME` explains one of them.")


def _known() -> dict[str, Method]:
    """This package's methods from their source; others only where there are any, since that means importing."""
    import sys
    from importlib.metadata import entry_points

    found = index()
    if "lvlm_attn.hooks.catalogue" in sys.modules or entry_points(group="lvlm_attn.methods"):
        from lvlm_attn.hooks.catalogue import methods as registered

        found |= {key: method_of(kind) for key, kind in registered().items() if key not in found}
    return dict(sorted(found.items()))


def _defaults(item: Method) -> str:
    return ",".join(
        f"{part.name}={part.default if part.default is not None else ''}"
        for part in item.parameters
        if not part.in_code_only
    )


def _at_commas(text: str, indent: int) -> Iterator[str]:
    """A list over several lines, which end after a comma or at a blank."""
    line = text[: len(text) - len(text.lstrip())]
    for part in re.findall(r"[^, ]+[, ]?|[, ]", text.strip()):
        if len(line) + len(part) > terminal_width() and line.strip():
            yield line.rstrip()
            line = " " * indent
        line += part
    yield line


def _explained(item: Method) -> Iterator[str]:
    width = terminal_width()
    yield f"{item.name} ({item.class_name})"
    yield from wrapped(item.summary, width)
    for paragraph in filter(None, item.text.split("\n\n")):
        yield ""
        for line in _paragraph(paragraph):
            yield from wrapped(line, width, subsequent_indent="  " if line.startswith("- ") else "")
    if item.parameters:
        yield ""
        yield "Parameters"
    for part in item.parameters:
        default = "has to be given" if part.default is None else part.default
        allowed = _allowed(part)
        yield from wrapped(
            f"{part.name}={default}  {allowed}", width, initial_indent="  ", subsequent_indent="      "
        )
        yield from wrapped(part.text, width, initial_indent="      ", subsequent_indent="      ")
    if item.presets:
        yield ""
        yield "Presets, which set what is left out; `auto` is what is taken by itself"
    for preset in item.presets:
        yield from wrapped(preset.name, width, initial_indent="  ", subsequent_indent="    ")
        yield from _at_commas(f"      {preset.settings}", 8)
        if preset.generate:
            yield f"      with generate(..., {preset.generate})"
        yield from wrapped(
            f"From: {preset.source}", width, initial_indent="      ", subsequent_indent="        "
        )
    yield ""
    yield from wrapped(f"Source: {item.source or 'not said'}", width, subsequent_indent="  ")
    yield from wrapped(f"Example: --intervene {item.example}", width, subsequent_indent="  ")


def wrapped(text: str, width: int, **indents: str) -> list[str]:
    """Lines of a text, in which what stands in backticks is not broken."""
    kept = re.sub(
        r"`[^`]*`",
        lambda found: found[0].translate(_GLUE) if len(found[0]) <= width // 2 else found[0],
        text,
    )
    return [line.translate(_UNGLUE) for line in textwrap.wrap(kept, width, **indents)]  # type: ignore[arg-type]


def _paragraph(text: str) -> list[str]:
    """The lines of a paragraph joined, points of a list each by itself."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("- ") or not lines:
            lines.append(line)
        else:
            lines[-1] += " " + line.strip()
    return lines


def _allowed(part: Parameter) -> str:
    if part.kind == "layers":
        return f"(layers: {_LAYERS}{'; or ' + part.allowed if part.allowed else ''})"
    if part.in_code_only:
        return "(given in code only)"
    if not part.allowed or part.allowed == part.kind:
        return f"({part.kind})"
    return f"({part.kind}: {part.allowed})"


def models(as_json: Json = False) -> None:
    """List the supported model families."""
    from lvlm_attn.families import models as known

    rows = [(name, family.title, ", ".join(family.examples)) for name, family in sorted(known().items())]
    if as_json:
        print_json(
            [{"model_type": name, "title": title, "examples": text.split(", ")} for name, title, text in rows]
        )
        return
    show(Table("Model families", ("model_type", "title", "for example"), tuple(rows), text_columns=3))


def sinks(
    model: Model,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Find the dimensions that mark a model's attention sinks."""
    from lvlm_attn.measures.diagnostics import find_sinks

    loaded = load_model(model, device, dtype, device_map)
    found = find_sinks(*loaded)
    if as_json:
        print_json({"model": model, **dataclasses.asdict(found)})
        return
    typer.echo(str(found))
    if found.source == "measured":
        most = loaded[0].config.get_text_config().hidden_size ** 0.5
        told = (
            f"The sink score is the activation of the first token in that dimension over the root mean square of all "
            f"(median over layers and texts); it is at most {most:.1f}, the root of the hidden size."
        )
        typer.echo("\n".join(wrapped(told, terminal_width())))
