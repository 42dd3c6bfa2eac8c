"""POPE metrics from raw answers.

The positive class is yes. An answer that the parser cannot read is ``unknown``: it stays in every denominator
of accuracy, recall and yes ratio, and so counts as wrong. Only the ``lmms`` parser leaves unknown answers out
of recall, as lmms-eval does; that tool's ``pope_yes_ratio`` is the share of yes *labels*, ours is always the
share of yes answers.

Metrics are fractions of 1. Source: Li et al. 2023 (POPE), section 4; aggregation is stated in each result
because pooled F1 is not the mean of the three F1 values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.parsers import get_parser, read_strictly
from lvlm_attn.evals.pope.answers import Answered

MAIN_METRICS = ("accuracy", "precision", "recall", "f1", "yes_ratio")
_MEANS = (*MAIN_METRICS, "balanced_accuracy", "mcc", "false_yes_rate")


@dataclass(frozen=True)
class Counts:
    """How often each verdict met each label."""

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    unknown_yes: int = 0
    unknown_no: int = 0

    def __add__(self, other: Counts) -> Counts:
        """Adds two tables cell by cell."""
        return Counts(*(getattr(self, item.name) + getattr(other, item.name) for item in fields(Counts)))

    def as_tuple(self) -> tuple[int, ...]:
        """The six cells in the order of the fields."""
        return tuple(getattr(self, item.name) for item in fields(Counts))


def count(answered: Iterable[Answered], parser: str = "strict") -> Counts:
    """Counts verdicts against labels.

    Args:
        answered: questions with raw answers.
        parser: name of the rule that reads an answer.

    Raises:
        LvlmAttnError: unknown parser, or a question without a label.
    """
    read = get_parser(parser)
    cells: Counter[tuple[str, str]] = Counter()
    for item in answered:
        label = item.question.label
        if label is None:
            raise LvlmAttnError(
                f"question {item.question.sample_id} has no label; add the labelled POPE file to --questions."
            )
        cells[read(item.text, label), label] += 1
    return Counts(
        tp=cells["yes", "yes"],
        fp=cells["yes", "no"],
        tn=cells["no", "no"],
        fn=cells["no", "yes"],
        unknown_yes=cells["unknown", "yes"],
        unknown_no=cells["unknown", "no"],
    )


def metrics(counts: Counts, unknown_is_wrong: bool = True) -> dict[str, float | int | None]:
    """Turns counts into metrics; a quotient without a denominator is 0, what no question asks about is None.

    Without a question whose answer is no there is no rate of false yes, without one whose answer is yes neither recall
    nor F1, and without both kinds neither balanced accuracy nor ``mcc``.

    Args:
        counts: the table of verdicts.
        unknown_is_wrong: whether an unreadable answer to a yes question lowers recall (False only for
            ``lmms``).

    Returns:
        Fractions of 1 (``mcc`` from -1 to 1) and the counts they come from. ``balanced_accuracy`` and ``mcc``
        always take an unreadable answer as the wrong one.
    """
    tp, fp, tn, fn, unknown_yes, unknown_no = counts.as_tuple()
    n = sum(counts.as_tuple())
    positives, negatives = tp + fn + unknown_yes, tn + fp + unknown_no
    precision = _ratio(tp, tp + fp)
    recall = _ratio(tp, positives if unknown_is_wrong else tp + fn)
    wrong_yes, wrong_no = negatives - tn, positives - tp
    spread = math.sqrt((tp + wrong_yes) * (tp + wrong_no) * (tn + wrong_yes) * (tn + wrong_no))
    has_both = positives > 0 and negatives > 0
    return {
        "accuracy": _ratio(tp + tn, n),
        "precision": precision,
        "recall": recall if positives else None,
        "f1": _ratio(2 * precision * recall, precision + recall) if positives else None,
        "yes_ratio": _ratio(tp + fp, n),
        "balanced_accuracy": (tp / positives + tn / negatives) / 2 if has_both else None,
        "mcc": _ratio(tp * tn - wrong_yes * wrong_no, spread) if has_both else None,
        "false_yes_rate": fp / negatives if negatives else None,
        "unknown": unknown_yes + unknown_no,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
        "n": n,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def score_pope(answered: Sequence[Answered], parser: str = "strict", failed: int = 0) -> dict[str, Any]:
    """Scores answers: pooled, per category, and the mean over categories.

    Args:
        answered: questions with raw answers.
        parser: name of the rule that reads an answer.
        failed: samples left out because no answer could be generated; reported, not scored.

    Returns:
        One JSON-ready object. Its top level is pooled over all questions (``aggregation`` says so); ``mean``
        averages the categories and ``per_category`` holds each. ``unknown`` counts what the chosen parser
        cannot read, ``unreadable`` what does not decide for yes or no, whatever the chosen parser makes of it.
        ``reasoning``, ``unfinished_reasoning`` and ``echoed`` count answers with a reasoning block, with one that
        never ends, and with an echoed instruction; only ``strict`` looks past them.

    Raises:
        LvlmAttnError: nothing to score, unknown parser, or a question without a label.
    """
    if not answered:
        raise LvlmAttnError("there are no answers to score; did every sample fail?")
    unknown_is_wrong = parser != "lmms"
    categories = list(dict.fromkeys(item.question.category for item in answered))
    groups = {name: [item for item in answered if item.question.category == name] for name in categories}
    tables = {name: count(items, parser) for name, items in groups.items()}
    pooled = metrics(sum(tables.values(), Counts()), unknown_is_wrong)
    per_category = {name: metrics(table, unknown_is_wrong) for name, table in tables.items()}
    false_yes: Counter[str] = Counter()
    read = get_parser(parser)
    for item in answered:
        question = item.question
        if question.label == "no" and question.object and read(item.text, "no") == "yes":
            false_yes[question.object] += 1
    readings = [read_strictly(item.text) for item in answered]
    return {
        "benchmark": "pope",
        "parser": parser,
        "aggregation": "pooled" if len(categories) > 1 else "single category",
        **pooled,
        "unreadable": sum(reading.verdict == "unknown" for reading in readings),
        "reasoning": sum(reading.reasoning for reading in readings),
        "unfinished_reasoning": sum(reading.unfinished for reading in readings),
        "echoed": sum(reading.echo for reading in readings),
        "failed": failed,
        "images": len({item.question.image for item in answered}),
        "mean": mean_over(per_category),
        "per_category": per_category,
        "false_yes_objects": dict(false_yes.most_common(10)),
    }


def mean_over(per_category: Mapping[str, Mapping[str, float | int | None]]) -> dict[str, float | None]:
    """Unweighted mean of each metric over the categories; None where a category has none."""
    found: dict[str, float | None] = {}
    for name in _MEANS:
        values = [float(value) for row in per_category.values() if (value := row[name]) is not None]
        found[name] = sum(values) / len(values) if len(values) == len(per_category) else None
    return found
