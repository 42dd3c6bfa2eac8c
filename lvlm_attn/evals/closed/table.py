"""The table of a benchmark's scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_attn.evals.closed.spec import Closed
from lvlm_attn.evals.core.report import counted, with_spread
from lvlm_attn.evals.core.tables import Table, percent


def closed_table(spec: Closed, runs: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row per run, every metric of the benchmark a column.

    Args:
        spec: the benchmark.
        runs: results of :func:`lvlm_attn.evals.closed.benchmark.score_lines` by the name of the run.
        title: the table's title.
    """
    first = next(iter(runs.values()))
    names = spec.tally({"parts": list(first["per_category"])}).compared
    rows = [
        (
            name,
            *(_cell(spec, metric, result) for metric in names),
            counted(result["unknown"]),
            str(result["n"]),
        )
        for name, result in runs.items()
    ]
    return Table(
        title, ("run", *(metric.removesuffix("_points") for metric in names), "unknown", "n"), tuple(rows)
    )


def _cell(spec: Closed, metric: str, result: Mapping[str, Any]) -> str:
    write = _points if metric in spec.units else percent
    return with_spread(write, result, result.get("spread", {}), metric, 1 if metric in spec.units else 2)


def _points(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
