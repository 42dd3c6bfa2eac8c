"""`lvlm-attn demo`: baseline, VAR, VHR and both, on POPE and CHAIR, with the bundled toy."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.cli.common import Device, DeviceMap, Split, Stopped, load_model, read_interventions
from lvlm_attn.evals.core.report import Table

RUNS = {"baseline": "none", "VAR": "var", "VHR": "vhr", "VAR+VHR": "var+vhr"}


def demo(
    limit: Annotated[int, typer.Option("--limit", min=3, help="How many scenes.")] = 100,
    out: Annotated[Path, typer.Option("--out", help="Folder for runs and tables.")] = Path("lvlm-runs/demo"),
    split: Split = "test",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts per forward pass.")] = 16,
    model: Annotated[str, typer.Option("--model", help="Another model for the toy's scenes.")] = "toy",
    device: Device = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Compare a small trained model with and without interventions on POPE and CHAIR; takes minutes on a CPU.

    Answers found in the folder are used again; give another --out to start afresh.
    """
    from lvlm_attn.evals.core.report import show
    from lvlm_attn.evals.core.run_folder import check_writable
    from lvlm_attn.evals.core.runner import RunInterrupted
    from lvlm_attn.evals.study import study
    from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

    start = time.perf_counter()
    check_writable(out)
    pope, chair = toy_pope(split, limit), toy_chair(split, limit)
    loaded = load_model(model, device, device_map=device_map)
    typer.echo(
        f"Model {model}, {limit} {split} scenes of the toy world: {len(pope.questions)} yes/no questions "
        f"and {limit} captions, {len(RUNS)} runs each, greedy decoding."
    )
    try:
        done = study(
            {name: read_interventions([text]) for name, text in RUNS.items()},
            pope,
            chair,
            model,
            *loaded,
            out / f"{split}-{limit}",
            batch_size=batch_size,
            show_progress=sys.stderr.isatty(),
            on_done=lambda benchmark, name, taken: typer.echo(f"  {benchmark:<6}{name:<10}{taken:6.1f} s"),
        )
    except RunInterrupted as error:
        raise Stopped(str(error)) from None
    tables = done.tables(f"{Path(model).name}, {limit} {split} scenes")
    for table in tables:
        typer.echo("")
        show(table)
    _write(out, tables)
    typer.echo(
        f"\n{time.perf_counter() - start:.0f} s in all. Tables in {out / 'table.md'}, answers beside it."
    )


def _write(out: Path, tables: list[Table]) -> None:
    from lvlm_attn.evals.core.jsonio import write_text
    from lvlm_attn.evals.core.report import markdown

    settings = ", ".join(f"`{text}`" for text in RUNS.values() if text != "none")
    text = "\n".join(markdown(table) for table in tables)
    write_text(out / "table.md", f"{text}\nMethods as written on the command line: {settings}.\n")
