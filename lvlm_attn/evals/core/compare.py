"""Is one run better than another? Paired tests on the samples both answered, with pictures as the unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.score import Caption, score_each
from lvlm_attn.evals.core.parsers import get_parser
from lvlm_attn.evals.core.stats import Totals, cluster_bootstrap, paired_outcomes, sum_by_cluster
from lvlm_attn.evals.pope.answers import Answered


def compare_pope(
    first: Sequence[Answered], second: Sequence[Answered], parser: str = "strict", resamples: int = 2000
) -> dict[str, Any]:
    """Compares accuracy on the questions both runs answered, equal questions of several splits taken once.

    Args:
        first: the reference, often the baseline.
        second: the run compared with it.
        parser: the rule that reads answers.
        resamples: bootstrap draws of pictures.

    Returns:
        ``difference`` in accuracy (second minus first) with ``low`` and ``high`` of its 95 % interval, and an
        exact McNemar test.

    Raises:
        LvlmAttnError: the runs share no question.
    """
    read = get_parser(parser)

    def outcomes(items: Sequence[Answered]) -> dict[tuple[str, str], bool]:
        found: dict[tuple[str, str], bool] = {}
        for item in items:
            label = item.question.label or "no"
            found.setdefault((item.question.image, item.question.text), read(item.text, label) == label)
        return found

    before, after = outcomes(first), outcomes(second)
    return _compare(before, after, [key for key in before if key in after], resamples)


def compare_chair(
    first: Sequence[Caption],
    second: Sequence[Caption],
    truth: Mapping[str, Iterable[str]],
    mode: str = "strict",
    resamples: int = 2000,
) -> dict[str, Any]:
    """Compares CHAIR_s: the share of captions with a hallucination.

    Args:
        first: captions of the reference.
        second: captions of the run compared with it.
        truth: the categories in each picture.
        mode: how words become categories.
        resamples: bootstrap draws of pictures.

    Returns:
        ``difference`` in the share of captions *without* hallucination, interval and McNemar test, as
        :func:`compare_pope`.

    Raises:
        LvlmAttnError: the runs share no picture.
    """
    before = {(score.image, ""): not score.hallucinated for score in score_each(first, truth, mode)}
    after = {(score.image, ""): not score.hallucinated for score in score_each(second, truth, mode)}
    return _compare(before, after, [key for key in before if key in after], resamples)


def _compare(
    before: Mapping[tuple[str, str], bool],
    after: Mapping[tuple[str, str], bool],
    shared: Sequence[tuple[str, str]],
    resamples: int,
) -> dict[str, Any]:
    if not shared:
        raise LvlmAttnError("the two runs have no sample in common; compare runs on the same data.")
    rows = [[float(before[key]), float(after[key]), 1.0] for key in shared]
    totals = sum_by_cluster([image for image, _ in shared], rows)

    def difference(sums: Totals) -> Totals:
        return (sums[:, 1] - sums[:, 0]) / sums[:, 2]

    interval = cluster_bootstrap(totals, difference, resamples)
    tested = paired_outcomes([before[key] for key in shared], [after[key] for key in shared])
    return {"difference": interval.value, "low": interval.low, "high": interval.high, **tested}
