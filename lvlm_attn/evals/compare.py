"""Is one run better than another? Paired tests on the samples both answered, with pictures as the unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.comparable import remarks, require_comparable
from lvlm_attn.evals.core.evaluate import Evaluation
from lvlm_attn.evals.core.finished import Run, names_of, read_run
from lvlm_attn.evals.core.stats import (
    Statistic,
    Totals,
    exchange_p_values,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    sum_by_cluster,
)
from lvlm_attn.evals.core.tally import Tally
from lvlm_attn.evals.pairing import Compared, Difference, Pairing
from lvlm_attn.evals.tallies import tally_of
from lvlm_attn.evals.wording import comparison_text

LEAST_SIGNIFICANT = 6
"""So many answers must change, all one way, before an exact McNemar test falls below 0.05: 2 / 2**6 = 0.03."""


class Comparison(Compared):
    """Runs compared with the first of them; printed, it is all tables and sentences."""

    def __str__(self) -> str:
        return comparison_text(self)


def compare(
    runs: Sequence[str | Path | Run | Evaluation],
    *,
    force: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compares runs with the first of them, on the samples that both answered.

    Intervals come from a bootstrap over pictures (and over seeds, in runs of several). The p value of accuracy and of
    CHAIR_s is an exact McNemar test in which every distinct question counts once; those of all other metrics exchange
    the two runs' answers picture by picture. ``p_holm`` corrects each metric over the runs compared.

    Args:
        runs: run folders, folders of several seeds, what `evaluate` returned, or runs that are read already; the
            first is the reference.
        force: compare runs with other decoding, questions or limits all the same.
        resamples: draws of pictures.
        seed: seeds the draws.

    Raises:
        LvlmAttnError: fewer than two runs, runs of different benchmarks, runs without a common sample, or runs that
            differ in decoding, questions or limits and `force` is not set.

    Example:
        >>> print(compare(["runs/baseline", "runs/vhr"]))  # doctest: +SKIP
    """
    if len(runs) < 2:
        raise LvlmAttnError(
            "a comparison needs at least two runs; name the reference first, then the others."
        )
    found = _read(runs)
    reference, others = found[0], found[1:]
    tally = tally_of(reference.benchmark, reference.scoring, reference.lines)
    pairings = {run.name: _pair(reference, run, tally, force, resamples, seed) for run in others}
    return Comparison(reference, tally, _corrected(pairings))


def _read(runs: Sequence[str | Path | Run | Evaluation]) -> list[Run]:
    places = [
        run.path if isinstance(run, Run) else run.folder if isinstance(run, Evaluation) else Path(run)
        for run in runs
    ]
    return [
        run if isinstance(run, Run) else read_run(place, name)
        for run, place, name in zip(runs, places, names_of(places), strict=True)
    ]


def _pair(reference: Run, run: Run, tally: Tally, force: bool, resamples: int, seed: int) -> Pairing:
    require_comparable(reference, run, force)
    first = [{str(line["sample_id"]): line for line in lines} for lines in reference.seeds]
    second = [{str(line["sample_id"]): line for line in lines} for lines in run.seeds]
    common = [name for name in first[0] if all(name in lines for lines in (*first, *second))]
    if not common:
        raise LvlmAttnError(
            f"{reference.name} and {run.name} have no sample in common; compare runs of the same data."
        )
    everything = set().union(*first, *second)
    counted = [
        tally.counts([lines[name] for name in common], reference.scoring) for lines in (*first, *second)
    ]
    before, after = np.asarray(counted[: len(first)]), np.asarray(counted[len(first) :])
    shown = [first[0][name] for name in common]
    pictures = [tally.cluster(line) for line in shown]
    seen: dict[Any, int] = {}
    for place, line in enumerate(shown):
        seen.setdefault(tally.question(line), place)
    places = list(seen.values())
    metrics = _differences(before, after, pictures, tally, resamples, seed)
    once, better, worse = _outcomes(before, after, places, pictures, tally, resamples, seed)
    if len(first) == len(second) == 1:
        metrics[tally.outcome] = replace(
            metrics[tally.outcome],
            p=once.p,
            p_holm=once.p,
            noise=max(metrics[tally.outcome].noise, once.noise),
        )
    same = sum(first[0][name].get("raw_text") == second[0][name].get("raw_text") for name in common)
    pairing = Pairing(
        run, metrics, once, len(common), len(places), len(set(pictures)), better, worse, same,
        len(everything) - len(common), (),
    )  # fmt: skip
    warnings = remarks(reference, run, tally, pairing.dropped, metrics, first[0], second[0], common)
    return replace(pairing, warnings=tuple(warnings))


def statistic_of(tally: Tally) -> Statistic:
    """The metrics compared, as a function of rows of column sums."""

    def statistic(sums: Totals) -> Totals:
        rows = []
        for row in sums.tolist():
            found = tally.metrics(row)
            rows.append([found[name] for name in tally.compared])
        return np.asarray(rows)

    return statistic


def _by_picture(counts: Totals, pictures: Sequence[Any]) -> Totals:
    """``(seeds, samples, columns)`` to ``(seeds, pictures, columns)``."""
    return np.stack([sum_by_cluster(pictures, rows) for rows in counts])


def _differences(
    before: Totals, after: Totals, pictures: Sequence[Any], tally: Tally, resamples: int, seed: int
) -> dict[str, Difference]:
    statistic = statistic_of(tally)
    first, second = _by_picture(before, pictures), _by_picture(after, pictures)
    found, drawn = paired_bootstrap(first, second, statistic, resamples, seed)
    values = statistic(first.sum(1)).mean(0), statistic(second.sum(1)).mean(0)
    p_values = exchange_p_values(first.mean(0), second.mean(0), statistic, resamples, seed)
    low, high, noise = _spread(drawn)
    return {
        name: Difference(
            *(float(item[i]) for item in (*values, found, low, high, p_values, p_values, p_values, noise))
        )
        for i, name in enumerate(tally.compared)
    }


def _spread(drawn: Totals) -> tuple[Totals, Totals, Totals]:
    """The 95 % interval and the noise of each metric, over the draws in which it is defined."""
    found = np.full((3, drawn.shape[1]), np.nan)
    for i, values in enumerate(drawn.T):
        kept = values[~np.isnan(values)]
        if kept.size:
            found[:, i] = *np.quantile(kept, [0.025, 0.975]), 1.96 * kept.std()
    return found[0], found[1], found[2]


def _outcomes(
    before: Totals,
    after: Totals,
    places: Sequence[int],
    pictures: Sequence[Any],
    tally: Tally,
    resamples: int,
    seed: int,
) -> tuple[Difference, int, int]:
    """Right answers, each distinct question once: the change, and how many changed for the better and the worse."""

    def right(counts: Totals) -> Totals:
        return np.asarray([[float(tally.is_right(tuple(rows[i]))) for i in places] for rows in counts])

    def share(sums: Totals) -> Totals:
        return sums[:, :1] / sums[:, 1:]

    first, second = right(before), right(after)
    where = [pictures[i] for i in places]
    stacked = [
        np.stack([sum_by_cluster(where, np.stack([row, np.ones_like(row)], 1).tolist()) for row in run])
        for run in (first, second)
    ]
    found, drawn = paired_bootstrap(stacked[0], stacked[1], share, resamples, seed)
    exchanged = float(exchange_p_values(stacked[0].mean(0), stacked[1].mean(0), share, resamples, seed)[0])
    better = int(((second.mean(0) - first.mean(0)) > 0).sum())
    worse = int(((second.mean(0) - first.mean(0)) < 0).sum())
    p = mcnemar_exact(worse, better) if len(first) == len(second) == 1 else exchanged
    low, high = np.quantile(drawn[:, 0], [0.025, 0.975])
    noise = max(1.96 * float(drawn.std()), min(1.0, LEAST_SIGNIFICANT / len(places)))
    return (
        Difference(
            float(first.mean()),
            float(second.mean()),
            float(found[0]),
            float(low),
            float(high),
            p,
            exchanged,
            p,
            noise,
        ),
        better,
        worse,
    )


def _corrected(pairings: dict[str, Pairing]) -> dict[str, Pairing]:
    """Holm's correction of each metric over the runs."""
    names = list(pairings)
    metrics = {name: dict(pairing.metrics) for name, pairing in pairings.items()}
    for metric in metrics[names[0]]:
        adjusted = holm([metrics[name][metric].p for name in names])
        for name, p in zip(names, adjusted, strict=True):
            metrics[name][metric] = replace(metrics[name][metric], p_holm=p)
    once = holm([pairings[name].once.p for name in names])
    return {
        name: replace(pairings[name], metrics=metrics[name], once=replace(pairings[name].once, p_holm=p))
        for name, p in zip(names, once, strict=True)
    }
