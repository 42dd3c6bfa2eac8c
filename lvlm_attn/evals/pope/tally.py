"""POPE's lines for the comparison of runs; serves every benchmark of yes/no questions with a `label`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.tally import Counts, Line, Tally
from lvlm_attn.evals.pope import score
from lvlm_attn.evals.pope.answers import Answered
from lvlm_attn.evals.pope.data import Question


def count_line(line: Line, scoring: Mapping[str, Any]) -> Counts:
    """One answer against its label: the six cells of :class:`lvlm_attn.evals.pope.score.Counts`.

    Raises:
        LvlmAttnError: the line has no label.
    """
    label = line.get("label")
    if label not in ("yes", "no"):
        raise LvlmAttnError(
            f"sample {line.get('sample_id')} has no label yes or no; make the run again with labelled questions."
        )
    name, text = str(line.get("sample_id")), str(line.get("question", ""))
    question = Question(name, name, str(line.get("image")), text, label, str(line.get("category", "")))
    answered = Answered(question, str(line.get("raw_text") or ""))
    return score.count([answered], scoring.get("parser", "strict")).as_tuple()


def tally_for(scoring: Mapping[str, Any]) -> Tally:
    """The counts of yes/no answers under a run's parser."""
    unknown_is_wrong = scoring.get("parser", "strict") != "lmms"

    def metrics(sums: Sequence[float]) -> Mapping[str, float]:
        found = score.metrics(score.Counts(*sums), unknown_is_wrong)  # type: ignore[arg-type]
        return {name: math.nan if value is None else value for name, value in found.items()}

    return Tally(
        title="POPE",
        count=count_line,
        metrics=metrics,
        compared=(*score.MAIN_METRICS, "balanced_accuracy", "mcc", "false_yes_rate"),
        outcome="accuracy",
        is_right=lambda counts: counts[0] + counts[2] > 0,
        lower_is_better=frozenset({"false_yes_rate"}),
        neither=frozenset({"yes_ratio"}),
    )
