"""The yes-logit shift: the bare model's own yes and no, with the threshold moved until it says yes as often.

A method that makes a model say yes more often (or less) gains on questions where the model leaned the other way,
and knows nothing new. Moving the threshold of the bare model does the same; AUROC does not depend on any threshold.
Source: Yin et al., "The Mirage of Performance Gains" (arXiv 2504.10020), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lvlm_attn.evals.core.tally import Line

_LEAST = 1e-12
"""Stands for a probability of 0 in logarithms."""


def margin(line: Line) -> float | None:
    """Log odds of yes against no at the first answer token; None where they were not kept.

    Example:
        >>> margin({"first_token": {"yes": 0.5, "no": 0.5}})
        0.0
    """
    first = line.get("first_token")
    if not isinstance(first, Mapping) or not {"yes", "no"} <= set(first):
        return None
    return math.log(max(first["yes"], _LEAST)) - math.log(max(first["no"], _LEAST))


def auroc(lines: Sequence[Line]) -> float | None:
    """Chance that a question to be answered yes has higher log odds of yes than one to be answered no.

    Ties count half. None where log odds were not kept or only one kind of question is there.
    """
    from scipy.stats import rankdata

    known = [(margin(line), line.get("label") == "yes") for line in lines]
    if any(value is None for value, _ in known):
        return None
    is_yes = np.array([flag for _, flag in known])
    positives, negatives = int(is_yes.sum()), int((~is_yes).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata([value for value, _ in known])
    return float((ranks[is_yes].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def matched_answers(lines: Sequence[Line], wanted: float) -> list[dict[str, Any]] | None:
    """The lines of the bare model, answered by a threshold so that the share of yes is as near as can be.

    Questions of equal log odds get equal answers, so that repeats of a question do not contradict each other.

    Args:
        lines: lines with ``first_token``.
        wanted: the share of yes, from 0 to 1.

    Returns:
        Copies with ``raw_text`` Yes or No; None where log odds were not kept.
    """
    margins = [margin(line) for line in lines]
    known = [value for value in margins if value is not None]
    if not known or len(known) < len(margins):
        return None
    ordered = sorted(known, reverse=True)
    counts = {0: math.inf}  # how many say yes, and the least log odds of a yes
    counts |= {
        place + 1: value for place, value in enumerate(ordered)
    }  # the last of equal ones counts them all
    cuts = {}
    for count, value in counts.items():
        if count == len(ordered) or count == 0 or ordered[count] < value:
            cuts[count] = value
    best = min(cuts, key=lambda count: abs(count - wanted * len(ordered)))
    return [
        {**line, "raw_text": "Yes" if value >= cuts[best] else "No"}
        for line, value in zip(lines, known, strict=True)
    ]
