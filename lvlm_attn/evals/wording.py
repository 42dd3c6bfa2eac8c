"""A comparison of runs as tables and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.json_text import one_line
from lvlm_attn.evals.core.report import chair_table, limits, pope_table, seeds_told
from lvlm_attn.evals.core.tables import (
    Table,
    filled,
    p_value,
    percent,
    plain,
    points,
    rounded,
    terminal_width,
)
from lvlm_attn.evals.core.tally import Tally
from lvlm_attn.evals.pairing import Compared, Difference, Pairing

LEVEL = 0.05
_NAMES = {"accuracy": "accuracy", "chair_s": "the share of captions with a hallucination"}


def comparison_text(comparison: Compared) -> str:
    """All tables and sentences, for a terminal."""
    parts = []
    for name, pairing in comparison.runs.items():
        warnings = [f"Warning: {item}" for item in pairing.warnings]
        left_out = 1 if pairing.dropped else 0
        if left_out:
            parts.append(filled(warnings[:left_out]))
        parts.append(plain(pair_table(comparison, name), terminal_width()))
        parts.append(filled([verdict(comparison, name), *warnings[left_out:]]))
    return "\n\n".join(parts)


def pair_table(comparison: Compared, name: str) -> Table:
    """One row per metric: before, after, the change with its interval, and whether it is more than chance."""
    pairing = comparison.runs[name]
    is_corrected = len(comparison.runs) > 1
    columns = ("metric", "before", "after", "change", "95 % interval", "p", "p (Holm)")
    rows = [
        (_label(metric, comparison.tally), *_cells(metric, change, comparison.tally))
        for metric, change in pairing.metrics.items()
    ]
    kept = len(columns) if is_corrected else len(columns) - 1
    title = (
        f"{comparison.tally.title}: {name} against {comparison.reference.name} "
        f"({limits(comparison.reference.generation)}; {size_of(pairing)}; % and points)"
    )
    return Table(title, columns[:kept], tuple(row[:kept] for row in rows))


def size_of(pairing: Pairing) -> str:
    """How much was compared."""
    seeds = f", {len(pairing.run.seeds)} seeds" if len(pairing.run.seeds) > 1 else ""
    samples = "1 sample" if pairing.samples == 1 else f"{pairing.samples} samples"
    pictures = "1 picture" if pairing.pictures == 1 else f"{pairing.pictures} pictures"
    return f"n={samples}, {pictures}{seeds}"


def _label(metric: str, tally: Tally) -> str:
    unit = tally.units.get(metric)
    return f"{metric} ({unit})" if unit else metric


def _cells(metric: str, change: Difference, tally: Tally) -> tuple[str, ...]:
    if not change.is_defined:
        return "-", "-", "-", "-", "-", "-"
    scale, digits = (1.0, 2) if metric in tally.units else (100.0, 1)
    before, after = (rounded(scale * value, digits) for value in (change.before, change.after))
    low, high = (rounded(scale * value, digits, "+") for value in (change.low, change.high))
    return (
        before,
        after,
        rounded(scale * change.difference, digits, "+"),
        f"{low} to {high}",
        p_value(change.p),
        p_value(change.p_holm),
    )


def verdict(comparison: Compared, name: str) -> str:
    """What one pair shows, in two sentences."""
    pairing, reference = comparison.runs[name], comparison.reference.name
    if pairing.is_identical:
        return (
            f"{name} and {reference} are identical: every one of the {pairing.samples} answers is the same, word for "
            "word."
        )
    metric = comparison.tally.outcome
    change = pairing.metrics[metric]
    asked = "captions" if metric == "chair_s" else "distinct questions"
    test = (
        f"{pairing.better} of {pairing.questions} {asked} better, {pairing.worse} worse, exact McNemar"
        if len(pairing.run.seeds) == len(comparison.reference.seeds) == 1
        else "by exchange of pictures,"
    )
    told = (
        f"{name}: {_NAMES.get(metric, metric)} changes by {points(change.difference)} points "
        f"(95 % interval {points(change.low)} to {points(change.high)}; {test} p {p_value(change.p)}"
        + (f", {p_value(change.p_holm)} after Holm" if len(comparison.runs) > 1 else "")
        + ")"
    )
    floor = f"changes below {percent(change.noise)} points cannot be told from chance with these samples."
    if change.p_holm >= LEVEL:
        return f"{told}: no difference is shown; {floor}"
    is_better = (change.difference < 0) == (metric in comparison.tally.lower_is_better)
    return f"{told}: {name} is {'better' if is_better else 'worse'} than {reference}; {floor}"


def overview_table(comparison: Compared) -> Table:
    """One row per run: the main outcome against the reference, distinct questions counted once."""
    metric = comparison.tally.outcome
    columns = ("run", "change", "95 % interval", "better", "worse", "noise floor", "p", "p (Holm)")
    rows = []
    for name, pairing in comparison.runs.items():
        change = pairing.metrics[metric]
        cells = _cells(metric, change, comparison.tally)
        rows.append(
            (
                name,
                *cells[2:4],
                str(pairing.better),
                str(pairing.worse),
                percent(change.noise),
                *cells[4:],
            )
        )
    title = (
        f"{comparison.tally.title}: {metric} against {comparison.reference.name}, in points "
        f"({limits(comparison.reference.generation)})"
    )
    return Table(title, columns, tuple(rows))


def once_table(comparison: Compared, title: str) -> Table:
    """One row per run: right answers against the reference, each distinct question once."""
    columns = ("run", "difference", "95 % interval", "better", "worse", "p", "p (Holm)")
    rows = []
    for name, pairing in comparison.runs.items():
        change, interval = points_of(pairing.once)
        p_values = p_value(pairing.once.p), p_value(pairing.once.p_holm)
        rows.append((name, change, interval, str(pairing.better), str(pairing.worse), *p_values))
    return Table(title, columns, tuple(rows))


def points_of(change: Difference) -> tuple[str, str]:
    """A difference and its interval, in points."""
    return points(change.difference), f"{points(change.low)} to {points(change.high)}"


def result_table(runs: Sequence[Run], tally: Tally) -> Table:
    """The scores of runs of one benchmark: mean and spread where there are several seeds."""
    title = f"{tally.title} (%; {limits(runs[0].generation)})"
    if any(limits(run.generation) != limits(runs[0].generation) for run in runs):
        title = (
            f"{tally.title} (%; " + "; ".join(f"{run.name}: {limits(run.generation)}" for run in runs) + ")"
        )
    written = _as_written({run.name: run.metrics for run in runs}, title)
    if written is not None:
        return written
    rows = []
    for run in runs:
        per_seed = [score(run, lines, tally) for lines in run.seeds]
        cells = [_spread([found[name] for found in per_seed], name, tally) for name in tally.compared]
        rows.append((run.name, *cells, str(len(run.seeds)), str(len(run.lines))))
    columns = ("run", *(_label(name, tally) for name in tally.compared), "seeds", "n")
    spread = ", mean ± standard deviation over seeds" if any(len(run.seeds) > 1 for run in runs) else ""
    return Table(title + spread, columns, tuple(rows))


def _as_written(known: Mapping[str, Mapping[str, Any]], title: str) -> Table | None:
    """The table of what `metrics.json` holds, where the benchmark has a table of its own."""
    made = {
        ("per_category", "mean", "accuracy"): pope_table,
        ("chair_s", "chair_i", "truncated"): chair_table,
    }
    for keys, table in made.items():
        if not all(set(keys) <= set(item) for item in known.values()):
            continue
        try:
            most = max(known.values(), key=lambda item: int(item.get("seeds", 1)))
            return table(known, title + seeds_told(most))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise LvlmAttnError(
                f"metrics.json of {' or '.join(known)} is damaged ({type(error).__name__}: "
                f"{one_line(str(error))}); run the evaluation again."
            ) from error
    return None


def score(run: Run, lines: Sequence[Mapping[str, Any]], tally: Tally) -> Mapping[str, float]:
    """The metrics of one list of lines."""
    counts = tally.counts(lines, run.scoring)
    return tally.metrics([sum(column) for column in zip(*counts, strict=True)])


def _spread(values: Sequence[float], name: str, tally: Tally) -> str:
    if any(map(math.isnan, values)):
        return "-"
    if name in tally.units:
        middle, wide = f"{mean(values):.2f}", f"{stdev(values):.2f}" if len(values) > 1 else ""
    else:
        middle, wide = percent(mean(values)), percent(stdev(values)) if len(values) > 1 else ""
    return f"{middle} ± {wide}" if wide else middle
