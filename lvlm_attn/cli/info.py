"""`lvlm-attn methods`, `models` and `sinks`: what there is, and where a model keeps its attention sinks."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import typer

from lvlm_attn.cli.common import Device, Dtype, Json, Model, load_model, print_json
from lvlm_attn.evals.core.report import Table, show


def methods(as_json: Json = False) -> None:
    """List the interventions with their parameters."""
    from lvlm_attn.hooks.catalogue import methods as known

    rows = [(name, _parameters(kind), _first_line(kind)) for name, kind in sorted(known().items())]
    if as_json:
        print_json([{"name": name, "parameters": text, "summary": line} for name, text, line in rows])
        return
    for name, text, line in rows:
        typer.echo(f"{name}  {line}")
        if text:
            typer.echo(f"    {name}:{text}")


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


def sinks(model: Model, device: Device = "auto", dtype: Dtype = "auto", as_json: Json = False) -> None:
    """Find the dimensions that mark a model's attention sinks."""
    from lvlm_attn.measures.diagnostics import find_sinks

    found = find_sinks(*load_model(model, device, dtype))
    if as_json:
        print_json({"model": model, **dataclasses.asdict(found)})
        return
    typer.echo(str(found))


def _first_line(kind: Any) -> str:
    return (inspect.getdoc(kind) or "").split("\n")[0]


def _parameters(kind: Any) -> str:
    if not dataclasses.is_dataclass(kind):
        return ""
    shown = []
    for item in dataclasses.fields(kind):
        default = "" if item.default is dataclasses.MISSING else str(item.default)
        shown.append(f"{item.name}={default}")
    return ",".join(shown)
