"""The tables of results: POPE, CHAIR, any other benchmark, and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lvlm_attn.evals.core.tables import Table as Table
from lvlm_attn.evals.core.tables import markdown as markdown
from lvlm_attn.evals.core.tables import p_value as p_value
from lvlm_attn.evals.core.tables import percent as percent
from lvlm_attn.evals.core.tables import plain as plain
from lvlm_attn.evals.core.tables import show as show


def pope_table(runs: Mapping[str, Mapping[str, Any]], title: str = "POPE (%)") -> Table:
    """One row per run and category, and the mean over categories where there are several.

    Args:
        runs: results of :func:`lvlm_attn.evals.pope.score.score_pope` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "questions",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "yes",
        "false yes",
        "unknown",
        "n",
    )
    rows = []
    for name, result in runs.items():
        parts = dict(result["per_category"])
        if len(parts) > 1:
            parts["mean"] = {**result["mean"], "unknown": result["unknown"], "n": result["n"]}
        for category, row in parts.items():
            shares = ("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_rate")
            wide = _spread_of(result, category)
            cells = (with_spread(percent, row, wide, key, 2) for key in shares)
            rows.append((name, category, *cells, counted(row["unknown"]), str(row["n"])))
    return Table(title + failed_told(runs), columns, tuple(rows), text_columns=2)


def chair_table(runs: Mapping[str, Mapping[str, Any]], title: str = "CHAIR (%)") -> Table:
    """One row per run, and where pictures come in subsets one for each, with their mean and spread.

    Args:
        runs: results of :func:`lvlm_attn.evals.chair.score.score_chair` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "precision",
        "F1",
        "tokens",
        "objects",
        "cut off",
        "n",
    )
    rows = []
    for name, row in runs.items():
        rows.append((name, *_chair_cells(row)))
        for subset, part in row.get("per_subset", {}).items():
            rows.append((f"{name}, {subset}", *_chair_cells(part)))
        if "subsets" in row:
            rows.append((f"{name}, mean ± deviation of subsets", *_chair_cells(row["subsets"])))
    return Table(title + failed_told(runs), columns, tuple(rows))


def _chair_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    wide = row.get("spread", {})
    shares = (
        with_spread(percent, row, wide, key) for key in ("chair_s", "chair_i", "recall", "precision", "f1")
    )
    lengths = (
        with_spread(_plain, row, wide, "len", 1),
        with_spread(_plain, row, wide, "mentions_per_caption", 2),
    )
    return (*shares, *lengths, with_spread(percent, row, wide, "truncated"), str(row["n"]))


def _spread_of(result: Mapping[str, Any], category: str) -> Mapping[str, Any]:
    """The standard deviations of one row; empty for a single run."""
    spread = result.get("spread", {})
    found = spread.get("mean") if category == "mean" else spread.get("per_category", {}).get(category)
    return found if isinstance(found, Mapping) else {}


def with_spread(
    write: Callable[[Any, int], str],
    row: Mapping[str, Any],
    spread: Mapping[str, Any],
    key: str,
    digits: int = 1,
) -> str:
    """A cell with its standard deviation over seeds, where there are several."""
    text = write(row.get(key), digits)
    return f"{text} ± {write(spread[key], digits)}" if key in spread else text


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def counted(value: float) -> str:
    """A count, which is a broken number where it is a mean over seeds."""
    return f"{value:g}" if isinstance(value, int) else f"{value:.1f}"


def limits(generation: Mapping[str, Any]) -> str:
    """How answers were generated, for titles: decoding and token limit.

    Example:
        >>> limits({"decode": "greedy", "max_new_tokens": 16})
        'greedy, at most 16 tokens'
    """
    decode = str(generation.get("decode", "unknown decoding"))
    if decode == "sample":
        decode = f"sampled at temperature {generation.get('temperature') or 1.0:g}"
    beams = generation.get("num_beams") or 1
    if beams > 1:
        decode = f"{beams} beams"
    limit = generation.get("max_new_tokens")
    return decode if limit is None else f"{decode}, at most {limit} tokens"


def failed_told(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """What titles say of samples that failed and are in no score; nothing where none did.

    Example:
        >>> failed_told({"vhr": {"n": 4, "failed": 4}})
        ', n=4 (4 of 8 failed)'
    """
    parts = []
    for name, result in runs.items():
        failed, scored = result.get("failed") or 0, result.get("n") or 0
        if failed:
            run = f"{name}: " if len(runs) > 1 else ""
            parts.append(
                f", {run}n={counted(scored)} ({counted(failed)} of {counted(scored + failed)} failed)"
            )
    return "".join(parts)


def seeds_told(metrics: Mapping[str, Any]) -> str:
    """What titles say of several seeds, with a comma before it; nothing for a single run."""
    count = metrics.get("seeds", 1)
    return f", mean ± standard deviation over {count} seeds" if count > 1 else ""
