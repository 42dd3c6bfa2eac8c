"""`lvlm-attn demo`: baseline, VAR, VHR and both, on POPE and CHAIR, with the bundled toy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from lvlm_attn.commands.common import Device, Split, load_model, run_benchmark
from lvlm_attn.evals.report import Table

RUNS = {"baseline": "none", "VAR": "var", "VHR": "vhr", "VAR+VHR": "var+vhr"}
CAPTION_TOKENS = 64


def demo(
    limit: Annotated[int, typer.Option("--limit", min=3, help="How many scenes.")] = 100,
    out: Annotated[Path, typer.Option("--out", help="Folder for runs and tables.")] = Path("lvlm-runs/demo"),
    split: Split = "test",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Prompts per forward pass.")] = 16,
    model: Annotated[str, typer.Option("--model", help="Another model for the toy's scenes.")] = "toy",
    device: Device = "auto",
) -> None:
    """Compare a small trained model with and without interventions on POPE and CHAIR; takes minutes on a CPU.

    Answers found in the folder are used again; give another --out to start afresh.
    """
    from lvlm_attn.evals.compare import compare_chair, compare_pope
    from lvlm_attn.evals.report import chair_table, comparison_table, pope_table, show
    from lvlm_attn.evals.run_folder import check_writable
    from lvlm_attn.evals.stats import holm
    from lvlm_attn.evals.toy_data import toy_chair, toy_pope
    from lvlm_attn.parsing import parse

    start = time.perf_counter()
    check_writable(out)
    pope, chair = toy_pope(split, limit), toy_chair(split, limit)
    loaded = load_model(model, device)
    typer.echo(
        f"Model {model}, {limit} {split} scenes of the toy world: {len(pope.questions)} yes/no questions "
        f"and {limit} captions, {len(RUNS)} runs each, greedy decoding."
    )
    pope_runs: dict[str, Any] = {}
    chair_runs: dict[str, Any] = {}
    for name, text in RUNS.items():
        for benchmark, runs, tokens in ((pope, pope_runs, None), (chair, chair_runs, CAPTION_TOKENS)):
            began = time.perf_counter()
            runs[name] = run_benchmark(
                benchmark,
                model,
                loaded,
                parse(text),
                max_new_tokens=tokens,
                out=out / f"{split}-{limit}" / benchmark.name / name.lower(),
                batch_size=batch_size,
            )
            typer.echo(f"  {benchmark.name:<6}{name:<10}{time.perf_counter() - began:6.1f} s")
    first, captions = pope.pairs(pope_runs["baseline"].lines)[0], chair.captions(chair_runs["baseline"].lines)
    pope_tests = {
        name: compare_pope(first, pope.pairs(done.lines)[0])
        for name, done in pope_runs.items()
        if name != "baseline"
    }
    chair_tests = {
        name: compare_chair(captions, chair.captions(done.lines), chair.truth)
        for name, done in chair_runs.items()
        if name != "baseline"
    }
    for tests in (pope_tests, chair_tests):
        for test, adjusted in zip(
            tests.values(), holm([item["mcnemar_p"] for item in tests.values()]), strict=True
        ):
            test["p_holm"] = adjusted
    where = f"{Path(model).name}, {limit} {split} scenes, greedy"
    tables = [
        pope_table({name: done.metrics for name, done in pope_runs.items()}, f"POPE (%): {where}"),
        chair_table({name: done.metrics for name, done in chair_runs.items()}, f"CHAIR (%): {where}"),
        comparison_table(pope_tests, "POPE accuracy against the baseline, in points, each question once"),
        comparison_table(chair_tests, "Captions without hallucination against the baseline, in points"),
    ]
    for table in tables:
        typer.echo("")
        show(table)
    _write(out, tables)
    typer.echo(
        f"\n{time.perf_counter() - start:.0f} s in all. Tables in {out / 'table.md'}, answers beside it."
    )


def _write(out: Path, tables: list[Table]) -> None:
    from lvlm_attn.evals.jsonio import write_text
    from lvlm_attn.evals.report import markdown

    settings = ", ".join(f"`{text}`" for text in RUNS.values() if text != "none")
    text = "\n".join(markdown(table) for table in tables)
    write_text(out / "table.md", f"{text}\nMethods as written on the command line: {settings}.\n")
