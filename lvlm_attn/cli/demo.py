"""`lvlm-attn demo`: what the toy is, what methods do inside it, and whether they help on POPE and CHAIR."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lvlm_attn.cli.common import Device, DeviceMap, Split, Stopped, load_model, read_interventions
from lvlm_attn.evals.core.tables import Table, percent, points

if TYPE_CHECKING:
    from lvlm_attn.evals.study import Study
    from lvlm_attn.hooks.var import VAR
    from lvlm_attn.hooks.vhr import VHR

BARE = "bare model"
CONTRASTIVE = "PAI"
_SHORT = ("VAR", "VHR", "VAR+VHR", CONTRASTIVE)
_SECONDS_A_SCENE = 0.5  # all five runs of it, on two CPU cores


def demo(
    limit: Annotated[int, typer.Option("--limit", min=3, help="How many scenes.")] = 100,
    out: Annotated[Path, typer.Option("--out", help="Folder for runs and tables.")] = Path("lvlm-runs/demo"),
    split: Split = "test",
    full: Annotated[bool, typer.Option("--full", help="All methods; takes half an hour.")] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts per forward pass.")] = 32,
    model: Annotated[str, typer.Option("--model", help="Another model for the toy's scenes.")] = "toy",
    device: Device = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Show on a small trained model what methods change inside it and whether that helps; minutes on a CPU.

    Answers found in the folder are used again; give another --out to start afresh.
    """
    from lvlm_attn.cli.demo_words import filled, introduction, mechanism, question, running, verdicts
    from lvlm_attn.evals.core.report import show
    from lvlm_attn.evals.core.run_folder import check_writable
    from lvlm_attn.evals.core.runner import RunInterrupted
    from lvlm_attn.evals.study import study
    from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

    start = time.perf_counter()
    check_writable(out)
    pope, chair = toy_pope(split, limit), toy_chair(split, limit)
    loaded = load_model(model, device, device_map=device_map)
    runs = settings(full)
    typer.echo(filled(introduction(model)))
    var, vhr = (read_interventions([runs[name]])[0] for name in ("VAR", "VHR"))
    for line in mechanism(*loaded, cast("VAR", var), cast("VHR", vhr), split, limit):
        typer.echo(line)
    asked = {(item.image, item.text) for item in pope.questions}
    shown = {image for image, _ in asked}
    typer.echo(f"\n{filled(question(len(asked), len(shown), limit, split))}")
    is_known = model == "toy" and not full
    typer.echo(filled(running(runs.values(), _SECONDS_A_SCENE * limit if is_known else None)))
    show_progress = sys.stderr.isatty()
    try:
        done = study(
            {name: read_interventions([text]) for name, text in runs.items()},
            pope,
            chair,
            model,
            *loaded,
            out / f"{split}-{limit}",
            batch_size=batch_size,
            show_progress=show_progress,
            on_done=_tell if full else None,
        )
    except RunInterrupted as error:
        raise Stopped(str(error)) from None
    for table in tables(done):
        typer.echo("")
        show(table)
    typer.echo("")
    for sentence in verdicts(done, full):
        typer.echo(filled(sentence))
    _write(out, done.tables(f"{Path(model).name}, {limit} {split} scenes"), runs)
    typer.echo(filled(_ending(out, split, limit, time.perf_counter() - start, full)))


def settings(full: bool) -> dict[str, str]:
    """The methods of the demo as on the command line, by name; the bare model first."""
    from lvlm_attn.toy.methods import chosen

    found = chosen()
    return {BARE: "none", **{name: text for name, text in found.items() if full or name in _SHORT}}


def tables(done: Study) -> list[Table]:
    """Yes/no questions and captions: the scores, and the change with its 95 % interval."""
    from lvlm_attn.evals.core.report import limits

    yes_no, captions = [], []
    for name, run in done.pope.items():
        mean = run.metrics["mean"]
        cells = (mean["accuracy"], mean["false_yes_rate"])
        yes_no.append((name, *map(percent, cells), *_change(done.pope_tests, name, "accuracy")))
        caption = done.chair[name].metrics
        shares = (caption["chair_i"], caption["chair_s"], caption["recall"])
        captions.append((name, *map(percent, shares), *_change(done.chair_tests, name, "chair_i")))
    asked, described = (limits(next(iter(runs.values())).generation) for runs in (done.pope, done.chair))
    return [
        Table(
            f"Yes/no questions (POPE, means of its three splits, %; {asked})",
            ("run", "accuracy", "false yes", "change in accuracy", "fixed", "broken"),
            tuple(yes_no),
        ),
        Table(
            f"Captions (CHAIR, %; {described})",
            ("run", "CHAIR_i", "CHAIR_s", "recall", "change in CHAIR_i", "fixed", "broken"),
            tuple(captions),
        ),
    ]


def _change(tests: Any, name: str, metric: str) -> tuple[str, str, str]:
    pairing = None if tests is None else tests.runs.get(name)
    if pairing is None:
        return "", "", ""
    change = pairing.metrics[metric]
    told = f"{points(change.difference)} ({points(change.low)} to {points(change.high)})"
    return told, str(pairing.better), str(pairing.worse)


def _ending(out: Path, split: str, limit: int, taken: float, full: bool) -> str:
    more = "" if full else "`lvlm-attn demo --full` for all methods; "
    return (
        f"{taken:.0f} s. Tables: {out / 'table.md'}; every answer: {out / f'{split}-{limit}'}. Next: {more}"
        "`lvlm-attn eval pope --model toy --data toy --intervene pai --controls` "
        "asks whether a gain survives; docs/results.md has every method."
    )


def _tell(benchmark: str, name: str, taken: float) -> None:
    typer.echo(f"  {benchmark:<6}{name:<20}{taken:6.1f} s")


def _write(out: Path, tables: list[Table], runs: Mapping[str, str]) -> None:
    from lvlm_attn.evals.core.jsonio import write_text
    from lvlm_attn.evals.core.report import markdown

    written = ", ".join(f"`{text}`" for text in runs.values() if text != "none")
    text = "\n".join(markdown(table) for table in tables)
    write_text(out / "table.md", f"{text}\nMethods as written on the command line: {written}.\n")
