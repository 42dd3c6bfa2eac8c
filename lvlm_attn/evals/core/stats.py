"""How sure a score is, and whether two runs differ: tests that respect that questions share pictures.

Rows about one picture are not independent, and the yes questions of POPE's three splits are the same rows, so
everything here resamples pictures. Sources: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
chapter 13 (percentile interval); McNemar (1947), in its exact binomial form; Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvlm_attn.errors import LvlmAttnError

Totals = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval.

    Attributes:
        value: the statistic of all the data.
        low: lower end.
        high: upper end.
        level: coverage, 0.95 unless chosen otherwise.
    """

    value: float
    low: float
    high: float
    level: float


def sum_by_cluster(clusters: Sequence[Hashable], rows: Sequence[Sequence[float]]) -> Totals:
    """Adds up the rows of each cluster, in order of first sight: ``(clusters, columns)``."""
    values = np.asarray(rows, dtype=np.float64)
    if len(clusters) != len(values) or not len(clusters):
        raise LvlmAttnError(
            f"{len(clusters)} cluster names for {len(values)} rows; give one per row, at least one."
        )
    index = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    totals = np.zeros((len(index), values.shape[1]))
    np.add.at(totals, [index[name] for name in clusters], values)
    return totals


def cluster_bootstrap(
    totals: Totals,
    statistic: Callable[[Totals], Totals],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic of column sums, with clusters (pictures) drawn with replacement.

    Args:
        totals: one row per cluster, ``(clusters, columns)``; for a paired comparison put both runs side by
            side.
        statistic: maps column sums ``(resamples, columns)`` to values ``(resamples,)``.
        resamples: how many draws.
        seed: seeds the draws.
        level: coverage of the interval.

    Example:
        >>> right_and_n = np.array([[2.0, 3.0], [3.0, 3.0], [1.0, 3.0]])
        >>> round(cluster_bootstrap(right_and_n, lambda t: t[:, 0] / t[:, 1]).value, 3)
        0.667
    """
    if not 0 < level < 1 or resamples < 1:
        raise LvlmAttnError(
            f"level is {level} and resamples {resamples}; level lies in 0..1, resamples from 1 up."
        )
    clusters = len(totals)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)
    drawn = statistic(weights @ totals)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    value = float(statistic(totals.sum(axis=0, keepdims=True))[0])
    return Interval(value, float(low), float(high), level)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p value for paired right/wrong outcomes.

    Args:
        only_first: pairs where only the first run is right.
        only_second: pairs where only the second run is right.

    Returns:
        The binomial probability of a split at least as uneven, at most 1.
    """
    if only_first < 0 or only_second < 0:
        raise LvlmAttnError(f"discordant counts are {only_first} and {only_second}; they cannot be negative.")
    n, k = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, float(2 * tail / 2**n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def paired_outcomes(first: Sequence[bool], second: Sequence[bool]) -> dict[str, Any]:
    """Counts discordant pairs and tests them.

    Args:
        first: right or wrong, one per pair.
        second: the other run, same order.

    Raises:
        LvlmAttnError: the runs differ in length.
    """
    if len(first) != len(second):
        raise LvlmAttnError(f"{len(first)} and {len(second)} outcomes; paired runs need the same samples.")
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    return {
        "pairs": len(first),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": mcnemar_exact(only_first, only_second),
    }
