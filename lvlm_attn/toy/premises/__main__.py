"""Measures on dev scenes whether what the methods act on is there in the toy.

python -m lvlm_attn.toy.premises [--scenes 60] [--model FOLDER] [--out FILE]
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.report import markdown
from lvlm_attn.evals.core.tables import Table
from lvlm_attn.toy.bundle import load, planted
from lvlm_attn.toy.premises import depth, heads, pairs, prior, seeing, sinks
from lvlm_attn.toy.premises.asking import Row, questions


def measure(count: int = 60, folder: Path | None = None) -> list[Row]:
    """Measures all premises.

    Args:
        count: dev scenes.
        folder: another toy than the one in the package.
    """
    model, processor = load(folder=folder)
    asked = questions(count)
    return [
        *sinks.measure(model, processor, planted(folder), asked),
        *heads.measure(model, processor, asked),
        *prior.measure(model, processor, asked),
        *seeing.measure_views(model, processor, asked),
        *seeing.measure_pointing(model, processor, asked),
        *depth.measure(model, processor, asked),
        *pairs.measure(model, processor, asked),
    ]


def main(
    count: Annotated[int, typer.Option("--scenes", min=4, help="How many dev scenes.")] = 60,
    model: Annotated[Path | None, typer.Option(help="Folder of another toy.")] = None,
    out: Annotated[Path | None, typer.Option(help="File for the table: .json, or Markdown.")] = None,
) -> None:
    """Measures on dev scenes whether what the methods act on is there in the toy; takes two or three minutes."""
    try:
        rows = measure(count, model)
    except LvlmAttnError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    for row in rows:
        typer.echo(f"{'yes' if row.holds else 'no ':<5}{row.premise}")
        typer.echo(
            textwrap.fill(
                f"{row.measured} (wanted: {row.wanted})",
                79,
                initial_indent="     ",
                subsequent_indent="     ",
            )
        )
    if out is None:
        return
    if out.suffix == ".json":
        out.write_text(json.dumps({"scenes": count, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
        return
    cells = tuple((row.premise, row.measured, row.wanted, "yes" if row.holds else "no") for row in rows)
    columns = ("premise", "measured", "wanted", "holds")
    out.write_text(markdown(Table(f"Premises on {count} dev scenes", columns, cells, text_columns=4)))


if __name__ == "__main__":
    typer.run(main)
