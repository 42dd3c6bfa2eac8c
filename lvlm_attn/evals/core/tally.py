"""What a benchmark tells the comparison of runs: how a result line becomes counts, and sums of counts metrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]
Counts = tuple[float, ...]


@dataclass(frozen=True)
class Tally:
    """How the result lines of a benchmark are counted.

    Everything that is compared is a function of column sums, so that pictures can be resampled or exchanged between
    runs by adding up other rows.

    Attributes:
        title: how tables name the benchmark.
        count: the counts of one line, given the run's scoring (parser, mode, ...).
        metrics: sums of counts to metrics, named as in ``metrics.json``; nan where nothing is asked about it.
        compared: names of the metrics that are compared, the most important ones first.
        outcome: the one among them that is the share of right, or of wrong, answers.
        is_right: whether the answer with these counts is a right one.
        cluster: what the line's picture is; lines of one picture are not independent.
        question: what is asked, the same for repeats of one question.
        lower_is_better: metrics that should fall.
        neither: metrics that are better neither high nor low, such as lengths.
        units: metrics that are no shares of 1, with their unit.
        groups: adds to the counts of lines what only several of them decide together, such as whether all answers
            about a picture are right; all lines of a group must be of one `cluster`. None where there is no such thing.

    Example:
        >>> shares = Tally(
        ...     "toy", lambda line, _: (line["right"], 1.0), lambda sums: {"accuracy": sums[0] / sums[1]},
        ...     ("accuracy",), "accuracy", lambda counts: counts[0] == 1,
        ... )
        >>> shares.metrics([3.0, 4.0])
        {'accuracy': 0.75}
    """

    title: str
    count: Callable[[Line, Mapping[str, Any]], Counts]
    metrics: Callable[[Sequence[float]], Mapping[str, float]]
    compared: tuple[str, ...]
    outcome: str
    is_right: Callable[[Counts], bool]
    cluster: Callable[[Line], Hashable] = lambda line: line.get("image", line.get("sample_id"))
    question: Callable[[Line], Hashable] = lambda line: (line.get("image"), line.get("question"))
    lower_is_better: frozenset[str] = frozenset()
    neither: frozenset[str] = frozenset()
    units: Mapping[str, str] = field(default_factory=dict)
    groups: Callable[[Sequence[Line], Sequence[Counts]], Sequence[Counts]] | None = None

    def counts(self, lines: Sequence[Line], scoring: Mapping[str, Any]) -> Sequence[Counts]:
        """The counts of all lines of one run, which add up to its metrics."""
        single = [self.count(line, scoring) for line in lines]
        return single if self.groups is None else self.groups(lines, single)
