"""Metrics of several runs that differ in their seed: the mean, and the standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def mean_and_spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One object like that of a single run, numbers averaged, with their standard deviations under ``spread``.

    Counts by name (``top_hallucinated``) that a run lacks are 0 there; what is no number is kept where all runs agree.

    Args:
        runs: the metrics of at least two runs.

    Example:
        >>> mean_and_spread([{"accuracy": 0.5, "n": 4}, {"accuracy": 0.75, "n": 4}])["accuracy"]
        0.625
        >>> round(mean_and_spread([{"accuracy": 0.5}, {"accuracy": 0.75}])["spread"]["accuracy"], 4)
        0.1768
    """
    return {**_joined(runs, mean), "spread": _joined(runs, _deviation), "seeds": len(runs)}


def _joined(runs: Sequence[Mapping[str, Any]], join: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for run in runs for key in run):
        values = [run.get(key) for run in runs]
        present = [value for value in values if value is not None]
        if present and all(isinstance(value, Mapping) for value in present):
            found[key] = _joined([value or {} for value in values], join)
        elif present and all(_is_number(value) for value in present):
            is_counted = any(key not in run for run in runs)
            found[key] = join([value or 0 for value in values] if is_counted else present)
        elif join is mean and all(value == values[0] for value in values):
            found[key] = values[0]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0
