"""Writes docs/results.md between its markers: tables, controls of what gained, and a line for each method."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.method_notes import NO_PREMISE, PREMISE

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results.md"
PREMISES = ROOT / "benchmarks" / "results" / "toy_premises.json"
BEGIN, END = "<!-- made by: python -m benchmarks.methods test -->", "<!-- end of what it made -->"
LEVEL = 0.05
BARE = "bare model"


@dataclass(frozen=True)
class Group:
    """Methods that ran on the same test scenes.

    Attributes:
        done: the study.
        methods: settings by name.
        count: test scenes.
        folder: of the runs.
    """

    done: Any
    methods: dict[str, str]
    count: int
    folder: Path


def write(groups: list[Group], missing: list[str], is_partial: bool) -> None:
    """Writes the page's tables; runs the controls of every method that gained, and names what did not run."""
    from lvlm_attn.evals.core.report import markdown

    parts = [premise_table(), chosen_table()]
    told_lines = ["**Each method in a line**\n"]
    for group in groups:
        adversarial = adversarial_tests(group.done)
        tables = yes_no_table(group.done, adversarial, group.count), caption_table(group.done, group.count)
        parts += [markdown(table) for table in tables]
        gained = [name for name in group.methods if gains(group.done, adversarial, name)]
        parts += [
            controls(name, group.methods[name], group.count, group.folder, is_partial) for name in gained
        ]
        told_lines += lines(group.done, adversarial, group.methods)
    parts.append("\n".join([*told_lines, ""]))
    if missing:
        parts.append(f"Not run on test scenes in this round: {', '.join(missing)}.\n")
    text = RESULTS.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    RESULTS.write_text(before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after)


def adversarial_tests(done: Any) -> Any:
    """The POPE runs compared with the first on adversarial questions alone."""
    from lvlm_attn.evals.compare import compare
    from lvlm_attn.evals.core.finished import read_run

    runs = []
    for name, item in done.pope.items():
        found = read_run(item.folder, name)
        kept = tuple(line for line in found.lines if line["category"] == "adversarial")
        runs.append(replace(found, seeds=(kept,)))
    return compare(runs, force=True)


def gains(done: Any, adversarial: Any, name: str) -> list[str]:
    """What a method makes better beyond chance, after Holm's correction over all methods."""
    checked = (
        ("accuracy", done.pope_tests, "accuracy", 1),
        ("adversarial false yes", adversarial, "false_yes_rate", -1),
        ("CHAIR_i", done.chair_tests, "chair_i", -1),
        ("CHAIR_s", done.chair_tests, "chair_s", -1),
    )
    found = []
    for label, tests, metric, sign in checked:
        change = tests.runs[name].metrics[metric]
        if change.p_holm < LEVEL and sign * change.difference > 0:
            found.append(f"{label} {told(change)}")
    return found


def losses(done: Any, name: str) -> list[str]:
    """What a method makes worse beyond chance, after Holm's correction."""
    found = []
    for label, tests, metric, sign in (
        ("accuracy", done.pope_tests, "accuracy", 1),
        ("CHAIR_i", done.chair_tests, "chair_i", -1),
        ("recall of captions", done.chair_tests, "recall", 1),
    ):
        change = tests.runs[name].metrics[metric]
        if change.p_holm < LEVEL and sign * change.difference < 0:
            found.append(f"{label} {told(change)}")
    return found


def told(change: Any) -> str:
    """A difference in points, with its interval."""
    low, high = 100 * change.low, 100 * change.high
    return f"{100 * change.difference:+.1f} ({low:+.1f} to {high:+.1f})"


def _cells(tests: Any, name: str, metric: str) -> tuple[str, str]:
    from lvlm_attn.evals.core.tables import p_value

    if name not in tests.runs:
        return "", ""
    change = tests.runs[name].metrics[metric]
    return told(change), p_value(change.p_holm)


def yes_no_table(done: Any, adversarial: Any, count: int) -> Any:
    from lvlm_attn.evals.core.tables import Table, percent

    rows = []
    for name, run in done.pope.items():
        parts = run.metrics["per_category"]
        cells = [percent(parts[key]["accuracy"]) for key in ("random", "popular", "adversarial")]
        cells += [
            percent(run.metrics["mean"]["yes_ratio"]),
            *_cells(done.pope_tests, name, "accuracy"),
            percent(parts["adversarial"]["false_yes_rate"]),
            *_cells(adversarial, name, "false_yes_rate"),
        ]
        rows.append((name, *cells))
    columns = ("method", "random", "popular", "adversarial", "yes", "accuracy", "p (Holm)")
    columns += ("adversarial false yes", "against the bare model", "p (Holm) ")
    asked = next(iter(done.pope.values())).metrics["n"]
    return Table(f"Yes/no: {asked} questions about {count} test scenes (%)", columns, tuple(rows))


def caption_table(done: Any, count: int) -> Any:
    from lvlm_attn.evals.core.tables import Table, percent

    rows = []
    for name, run in done.chair.items():
        found = run.metrics
        cells = [percent(found[key]) for key in ("chair_s", "chair_i", "recall")]
        cells += [f"{found['len']:.1f}", *_cells(done.chair_tests, name, "chair_i")]
        rows.append((name, *cells, *_cells(done.chair_tests, name, "chair_s")))
    columns = (
        "method",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "tokens",
        "CHAIR_i against the bare model",
        "p (Holm)",
    )
    columns += ("CHAIR_s against the bare model", "p (Holm) ")
    return Table(f"Captions of {count} test scenes (%)", columns, tuple(rows))


def premise_table() -> str:
    """The premise table as ``python -m lvlm_attn.toy.premises`` measured it."""
    kept = json.loads(PREMISES.read_text())
    head = (
        f"**Premises, on {kept['scenes']} dev scenes**\n\n| premise | measured | wanted | holds |\n"
        "| --- | --- | --- | --- |"
    )
    rows = (
        f"| {row['premise']} | {row['measured']} | {row['wanted']} | {'yes' if row['holds'] else 'no'} |"
        for row in kept["rows"]
    )
    return "\n".join([head, *rows, ""])


def chosen_table() -> str:
    """What was tried on dev scenes."""
    from lvlm_attn.toy.methods import CHOSEN

    kept = json.loads(CHOSEN.read_text())
    lines = [
        f"**Settings tried on {kept['scenes']} dev scenes (%)**; chosen, in bold, by {kept['rule']}. Methods that are "
        "not listed have one setting, their defaults.\n",
        "| method | setting | accuracy | CHAIR_i | recall |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in kept["tried"]:
        is_chosen = kept["chosen"][row["method"]] == row["setting"]
        setting = f"**`{row['setting']}`**" if is_chosen else f"`{row['setting']}`"
        shares = (f"{100 * row[key]:.1f}" for key in ("accuracy", "chair_i", "recall"))
        lines.append(f"| {row['method']} | {setting} | {' | '.join(shares)} |")
    return "\n".join([*lines, ""])


def controls(name: str, text: str, count: int, folder: Path, is_partial: bool = False) -> str:
    """Runs and words the controls of one method; what is finished in the folder is not run again.

    With `is_partial` nothing is run: controls that are not finished are named as such.
    """
    import lvlm_attn as la
    from lvlm_attn.evals.controls.controls import evaluate_with_controls
    from lvlm_attn.evals.core.report import markdown
    from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

    model, processor = la.load("toy")
    parts = [f"**Controls of {name}**\n"]
    for benchmark in (toy_pope("test", count), toy_chair("test", count)):
        out = folder / benchmark.name / name.lower()
        _lend(folder / benchmark.name, out / "controls")
        wanted = ("bare", "identity", "prefer-yes") if benchmark.asks_yes_no else ("bare", "identity")
        if is_partial and not all((out / "controls" / run / "metrics.json").is_file() for run in wanted):
            parts.append(f"{benchmark.name.upper()}: not run; a gain there has not been held against them.\n")
            continue
        _, found = evaluate_with_controls(
            model, processor, benchmark, la.parse(text), out=out, batch_size=32, model_name="toy"
        )
        if found is not None:
            parts += [markdown(found.table()), " ".join(found.sentences()) + "\n"]
        print(f"controls of {name} on {benchmark.name}", flush=True)
    return "\n".join(parts)


def _lend(runs: Path, beside: Path) -> None:
    """Gives a method's controls the runs that are the same for all methods."""
    known = {"bare": runs / BARE, "prefer-yes": next(runs.glob("*/controls/prefer-yes"), None)}
    for name, folder in known.items():
        is_done = folder is not None and (folder / "metrics.json").is_file()
        if is_done and not (beside / name).exists():
            shutil.copytree(folder, beside / name)


def lines(done: Any, adversarial: Any, methods: dict[str, str]) -> list[str]:
    """One line per method: premise, what it changed, whether it helps."""
    rows = {row["premise"]: row for row in json.loads(PREMISES.read_text())["rows"]}
    found = []
    for name, text in methods.items():
        answers, captions = done.pope_tests.runs[name], done.chair_tests.runs[name]
        row = rows.get(PREMISE.get(name, ""))
        premise = "it is a control" if name == "identity" else NO_PREMISE
        if row is not None:
            premise = f"{row['premise']}: {'holds' if row['holds'] else 'fails'}"
        changed = (
            f"{answers.samples - answers.same_texts} of {answers.samples} answers and "
            f"{captions.samples - captions.same_texts} of {captions.samples} captions change"
        )
        better, worse = gains(done, adversarial, name), losses(done, name)
        helps = (
            f"better (what survives is under its controls): {'; '.join(better)}"
            if better
            else "no gain beyond chance"
        )
        if worse:
            helps += f"; harms: {'; '.join(worse)}"
        found.append(
            f"- **{name}** (`{text}`). Premise: {premise}. {changed}. {helps[0].upper()}{helps[1:]}."
        )
    return found
