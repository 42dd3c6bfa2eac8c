"""What makes one benchmark of closed questions another than the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.evals.closed.cells import Cells, total, unpack, width
from lvlm_attn.evals.closed.folder import DataFolder
from lvlm_attn.evals.closed.question import ClosedQuestion
from lvlm_attn.evals.closed.rules import require_rule, verdict
from lvlm_attn.evals.core.tally import Counts, Line, Tally

Parts = Mapping[str, Cells]
_PLACES = {
    ("yes", "yes"): 0, ("yes", "no"): 1, ("no", "no"): 2, ("no", "yes"): 3, ("unknown", "yes"): 4, ("unknown", "no"): 5,
}  # fmt: skip


_LABELS = {"yes": "yes", "no": "no", "A": "yes", "B": "no"}


@dataclass(frozen=True)
class Closed:
    """A benchmark of closed questions.

    Attributes:
        name: as on the command line.
        title: as in tables.
        about: one sentence for the command's help.
        source: the paper.
        read: the questions in a user's copy, in the order of its files.
        metrics: counts by part to metrics, the most important ones first; which metrics there are depends on which
            parts there are alone.
        outcome: the metric that is the share of right answers.
        kinds: kinds of groups of questions that count as right together.
        parts: the parts in their usual order, where they are known beforehand.
        subsets: names for several parts.
        units: metrics that are no shares of 1, with their unit.
        hub: its data set on the hub, where there is one.
        max_new_tokens: length limit of an answer.
    """

    name: str
    title: str
    about: str
    source: str
    read: Callable[[DataFolder], Sequence[ClosedQuestion]]
    metrics: Callable[[Parts], dict[str, float]]
    outcome: str = "accuracy"
    kinds: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    hub: str | None = None
    max_new_tokens: int = 16
    neither: frozenset[str] = frozenset({"yes_ratio"})

    def cells(self, sums: Sequence[float], scoring: Mapping[str, Any]) -> dict[str, Cells]:
        """The counts of every part, from one row of column sums."""
        return unpack(sums, self._parts(scoring), self.kinds)

    def _parts(self, scoring: Mapping[str, Any]) -> Sequence[str]:
        found = scoring.get("parts")
        if not isinstance(found, list) or not found:
            raise LvlmAttnError(
                f"the scoring of this {self.title} run names no parts; make the run again with this version."
            )
        return found

    def score(self, lines: Sequence[Line], scoring: Mapping[str, Any]) -> dict[str, Cells]:
        """The counts of every part, from answered result lines."""
        counts = self.tally(scoring).counts(lines, scoring)
        return self.cells([sum(column) for column in zip(*counts, strict=True)], scoring)

    def tally(self, scoring: Mapping[str, Any]) -> Tally:
        """How lines are counted when runs are compared.

        Args:
            scoring: ``parser``, and ``parts`` in their order.

        Raises:
            LvlmAttnError: it names no parts.
        """
        parts = self._parts(scoring)
        size = width(self.kinds)
        places = {part: i * size for i, part in enumerate(parts)}
        right = [place + i for place in places.values() for i in (0, 2)]

        def count(line: Line, scoring: Mapping[str, Any]) -> Counts:
            found = [0.0] * (size * len(parts))
            part = line.get("category")
            if part not in places:
                raise LvlmAttnError(
                    f"sample {line.get('sample_id')} is of the part {shown(part)}, which the scoring of this "
                    f"{self.title} run does not name; make the run again."
                )
            found[places[part] + _place(line, scoring.get("parser") or "strict")] = 1.0
            return tuple(found)

        def together(lines: Sequence[Line], counts: Sequence[Counts]) -> list[Counts]:
            return self._with_groups(lines, counts, places, right)

        def metrics(sums: Sequence[float]) -> Mapping[str, float]:
            return self.metrics(unpack(sums, parts, self.kinds))

        return Tally(
            title=self.title,
            count=count,
            metrics=metrics,
            compared=tuple(metrics([0.0] * (size * len(parts)))),
            outcome=self.outcome,
            is_right=lambda counts: any(counts[i] > 0 for i in right),
            cluster=lambda line: line.get("cluster", line.get("image")),
            question=lambda line: line.get("sample_id"),
            neither=self.neither,
            units=self.units,
            groups=together if self.kinds else None,
        )

    def _with_groups(
        self,
        lines: Sequence[Line],
        counts: Sequence[Counts],
        places: Mapping[str, int],
        right: Sequence[int],
    ) -> list[Counts]:
        """Adds each group of questions to the counts of its last line; groups that are not complete are left out."""
        found = [list(row) for row in counts]
        members: dict[tuple[str, str], list[int]] = {}
        for i, line in enumerate(lines):
            for k, kind in enumerate(self.kinds):
                name, size = (line.get("groups") or {}).get(kind, (None, 0))
                if name is None:
                    continue
                group = members.setdefault((kind, name), [])
                group.append(i)
                if len(group) == size:
                    at = places[line["category"]] + width(()) + 2 * k
                    found[i][at] += all(any(counts[j][cell] for cell in right) for j in group)
                    found[i][at + 1] += 1
        return [tuple(row) for row in found]


def _place(line: Line, rule: str) -> int:
    label = line.get("label")
    if label not in _LABELS:
        raise LvlmAttnError(
            f"sample {line.get('sample_id')} has no label yes, no, A or B; make the run again with labelled questions."
        )
    require_rule(rule, label in ("A", "B"))
    said = verdict(str(line.get("raw_text") or ""), label, line.get("options") or (), rule)
    return _PLACES[said, _LABELS[label]]


def whole(parts: Parts) -> Cells:
    """The counts of all parts together."""
    return total(list(parts.values()))
