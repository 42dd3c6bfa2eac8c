"""The yes-logit shift: the bare model's own yes and no, with the threshold moved until it says yes as often.

A method that makes a model say yes more often (or less) gains on questions where the model leaned the other way,
and knows nothing new. Moving the threshold of the bare model does the same; AUROC does not depend on any threshold.
So it is with the letters A and B: models lean towards one of them whatever the options say.
Source: Yin et al., "The Mirage of Performance Gains" (arXiv 2504.10020), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lvlm_attn.evals.closed.rules import LETTER_RULES, verdict
from lvlm_attn.evals.core.parsers import PARSERS
from lvlm_attn.evals.core.tally import Line

_LEAST = 1e-12
"""Stands for a probability of 0 in logarithms."""


@dataclass(frozen=True)
class Kind:
    """A kind of closed question.

    Attributes:
        name: of its control.
        told: how sentences name the kind.
        words: keys of ``first_token``, which are what the two labels say.
        first: the answer that stands for the first word.
        second: that of the other.
    """

    name: str
    told: str
    words: tuple[str, str]
    first: str
    second: str

    def asks(self, line: Line) -> bool:
        """Whether a line is of this kind."""
        return line.get("label") in self.words

    def says_first(self, line: Line, rule: str) -> bool:
        """Whether an answer is the first word, as a rule reads it."""
        known = LETTER_RULES if self.first == "A" else PARSERS
        text, options = str(line.get("raw_text") or ""), line.get("options") or ()
        return verdict(text, str(line["label"]), options, rule if rule in known else "strict") == "yes"


KINDS = (
    Kind("yes-logit", "yes/no", ("yes", "no"), "Yes", "No"),
    Kind("letter", "letter", ("A", "B"), "A", "B"),
)


def kinds_of(lines: Sequence[Line]) -> list[Kind]:
    """The kinds of questions among lines."""
    return [kind for kind in KINDS if any(kind.asks(line) for line in lines)]


def _kind(line: Line) -> Kind:
    return next((kind for kind in KINDS if kind.asks(line)), KINDS[0])


def margin(line: Line) -> float | None:
    """Log odds of yes against no, or of A against B, at the first answer token; None where they were not kept.

    Example:
        >>> margin({"first_token": {"yes": 0.5, "no": 0.5}})
        0.0
    """
    first, words = line.get("first_token"), _kind(line).words
    if not isinstance(first, Mapping) or not set(words) <= set(first):
        return None
    odds = [math.log(max(first[word], _LEAST)) for word in words]
    return odds[0] - odds[1]


def held(lines: Sequence[Line]) -> float | None:
    """The mean probability of both words together; None where they were not kept.

    Where it is small, the model begins its answers with something else, and log odds of the words say little.

    Example:
        >>> held([{"label": "A", "first_token": {"A": 0.5, "B": 0.25}}])
        0.75
    """
    known = [line.get("first_token") for line in lines]
    if not lines or any(margin(line) is None for line in lines):
        return None
    sums = [sum(first[word] for word in _kind(line).words) for line, first in zip(lines, known) if first]
    return float(sum(sums) / len(sums))


def auroc(lines: Sequence[Line]) -> float | None:
    """Chance that a question to be answered yes (or A) has higher log odds of it than one to be answered no (or B).

    Ties count half. None where log odds were not kept or only one kind of question is there.
    """
    from scipy.stats import rankdata

    known = [(margin(line), line.get("label") == _kind(line).words[0]) for line in lines]
    if any(value is None for value, _ in known):
        return None
    is_yes = np.array([flag for _, flag in known])
    positives, negatives = int(is_yes.sum()), int((~is_yes).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata([value for value, _ in known])
    return float((ranks[is_yes].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def matched_answers(lines: Sequence[Line], wanted: float) -> list[dict[str, Any]] | None:
    """Lines of one kind, answered by a threshold so that the share of yes, or of A, is as near as can be.

    Questions of equal log odds get equal answers, so that repeats of a question do not contradict each other.

    Args:
        lines: lines with ``first_token``.
        wanted: the share of yes or A, from 0 to 1.

    Returns:
        Copies with ``raw_text`` Yes or No, or A or B; None where log odds were not kept.
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
        {**line, "raw_text": _kind(line).first if value >= cuts[best] else _kind(line).second}
        for line, value in zip(lines, known, strict=True)
    ]
