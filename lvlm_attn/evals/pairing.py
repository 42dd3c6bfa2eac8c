"""What a comparison of runs holds: how each metric changed, and what both runs answered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.tally import Tally


@dataclass(frozen=True)
class Difference:
    """How a metric changed; all nan, and p 1, where no sample asks about it.

    Attributes:
        before: in the reference.
        after: in the run.
        difference: ``after - before``.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided; exact McNemar for accuracy and CHAIR_s, else by exchange of pictures.
        p_exchange: by exchange of pictures, whatever the metric.
        p_holm: corrected over the runs compared with one reference.
        noise: differences nearer to 0 than this cannot be told from chance with these samples.
    """

    before: float
    after: float
    difference: float
    low: float
    high: float
    p: float
    p_exchange: float
    p_holm: float
    noise: float

    @property
    def is_defined(self) -> bool:
        """Whether the samples ask about the metric: without questions whose answer is no there is no false yes."""
        return not math.isnan(self.difference)


@dataclass(frozen=True)
class Pairing:
    """One run against the reference.

    Attributes:
        run: the run.
        metrics: the change of every metric, named as in ``metrics.json``.
        once: the change of right answers with every distinct question counted once.
        samples: how many samples both answered, repeats of a question included.
        questions: how many distinct questions.
        pictures: how many pictures.
        better: questions that only the run answers rightly.
        worse: questions that only the reference answers rightly.
        same_texts: how many samples have the same text in both, with one seed each.
        dropped: samples that only one of the two answered.
        warnings: what may make the comparison unfair.
    """

    run: Run
    metrics: Mapping[str, Difference]
    once: Difference
    samples: int
    questions: int
    pictures: int
    better: int
    worse: int
    same_texts: int
    dropped: int
    warnings: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        """Whether every text is the same."""
        return self.same_texts == self.samples and len(self.run.seeds) == 1


@dataclass(frozen=True)
class Compared:
    """Runs compared with the first of them.

    Attributes:
        reference: the first run.
        tally: how its benchmark counts.
        runs: the others by name.
    """

    reference: Run
    tally: Tally
    runs: Mapping[str, Pairing]

    def to_dict(self) -> dict[str, Any]:
        """Differences as fractions of 1 (lengths in their own unit), JSON-ready; None where no sample asks about it."""
        keys = ("difference", "low", "high", "p", "p_holm")

        def told(change: Difference, key: str) -> float | None:
            return float(getattr(change, key)) if change.is_defined else None

        return {
            "reference": self.reference.name,
            "runs": {
                name: {
                    metric: {key: told(change, key) for key in keys}
                    for metric, change in pairing.metrics.items()
                }
                for name, pairing in self.runs.items()
            },
        }
