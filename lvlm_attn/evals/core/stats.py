"""How sure a score is, and whether two runs differ: tests that respect that questions share pictures.

Rows about one picture are not independent, and the yes questions of POPE's three splits are the same rows, so
everything here resamples pictures. Sources: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
chapters 13 (percentile interval) and 15 (permutation tests); McNemar (1947), in its exact binomial form; Holm (1979).
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
Statistic = Callable[[Totals], Totals]
"""Maps column sums ``(draws, columns)`` to values ``(draws, metrics)``."""


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


def paired_bootstrap(
    first: Totals, second: Totals, statistic: Statistic, resamples: int = 2000, seed: int = 0
) -> tuple[Totals, Totals]:
    """Differences between two runs on resampled pictures, both runs on the same ones; seeds are resampled too.

    Args:
        first: ``(seeds, pictures, columns)``; one seed where decoding has none.
        second: the other run, the same pictures in the same order.
        statistic: maps column sums to metrics.
        resamples: how many draws.
        seed: seeds the draws.

    Returns:
        Metrics of the second run minus those of the first, ``(metrics,)``, each a mean over seeds, and the same for
        every draw, ``(draws, metrics)``.
    """
    generator = np.random.default_rng(seed)
    pictures = first.shape[1]
    weights = generator.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)

    def means(run: Totals) -> tuple[Totals, Totals]:
        seeds = len(run)
        found = statistic(run.sum(1)).mean(0)
        drawn = np.stack([statistic(weights @ totals) for totals in run])
        counts = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
        return found, np.einsum("rs,srm->rm", counts, drawn)

    before, before_drawn = means(first)
    after, after_drawn = means(second)
    return after - before, after_drawn - before_drawn


def exchange_p_values(
    first: Totals, second: Totals, statistic: Statistic, draws: int = 2000, seed: int = 0
) -> Totals:
    """Two-sided p values of a permutation test: if the runs do not differ, a picture's answers may change places.

    Exact for every metric, ratios of sums among them, however strongly the answers about one picture depend on
    each other; a draw exchanges the runs' answers about each picture with probability a half.

    Args:
        first: ``(pictures, columns)``, a mean over seeds where there are several.
        second: the other run.
        statistic: maps column sums to metrics.
        draws: random exchanges; the least p value is 1 / (draws + 1).
        seed: seeds the draws.

    Returns:
        ``(metrics,)``.
    """
    is_moved = np.random.default_rng(seed).integers(0, 2, size=(draws, len(first))).astype(np.float64)
    moved = is_moved @ (second - first)
    drawn = statistic(second.sum(0) - moved) - statistic(first.sum(0) + moved)
    found = statistic(second.sum(0, keepdims=True)) - statistic(first.sum(0, keepdims=True))
    # Equal sums in another order differ in their last bits, and must count as equal.
    # What is not defined counts as far, so that it never makes a difference significant.
    as_far = ~(np.abs(drawn) < np.abs(found) - 1e-12)
    return np.asarray((1 + as_far.sum(0)) / (draws + 1))


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
    only_first = sum(a and not b for a, b in zip(first, second))
    only_second = sum(b and not a for a, b in zip(first, second))
    return {
        "pairs": len(first),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "mcnemar_p": mcnemar_exact(only_first, only_second),
    }
