"""Verdicts against right answers, as counts that add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CELLS = ("tp", "fp", "tn", "fn", "unknown_yes", "unknown_no")


@dataclass(frozen=True)
class Cells:
    """How often each verdict met each right answer; yes also stands for the letter A, and no for B.

    Attributes:
        tp: yes, rightly.
        fp: yes, wrongly.
        tn: no, rightly.
        fn: no, wrongly.
        unknown_yes: neither, where yes is right.
        unknown_no: neither, where no is right.
        groups: by kind, groups of questions all answered rightly, and all groups.
    """

    tp: float = 0
    fp: float = 0
    tn: float = 0
    fn: float = 0
    unknown_yes: float = 0
    unknown_no: float = 0
    groups: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def right(self) -> float:
        """Right answers."""
        return self.tp + self.tn

    @property
    def n(self) -> float:
        """All answers."""
        return self.tp + self.fp + self.tn + self.fn + self.unknown_yes + self.unknown_no

    @property
    def unknown(self) -> float:
        """Answers that the rule cannot read; they count as wrong."""
        return self.unknown_yes + self.unknown_no

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return ratio(self.right, self.n)

    @property
    def yes_ratio(self) -> float:
        """Share of answers that are yes."""
        return ratio(self.tp + self.fp, self.n)

    @property
    def recall(self) -> float:
        """Share of yes questions answered yes."""
        return ratio(self.tp, self.tp + self.fn + self.unknown_yes)

    @property
    def no_recall(self) -> float:
        """Share of no questions answered no."""
        return ratio(self.tn, self.tn + self.fp + self.unknown_no)

    @property
    def no_precision(self) -> float:
        """Share of the answers no that are right."""
        return ratio(self.tn, self.tn + self.fn)

    def share(self, kind: str) -> float:
        """Share of the groups of a kind with every question right."""
        return ratio(*self.groups.get(kind, (0, 0)))


def ratio(part: float, whole: float) -> float:
    """A quotient; 0 without a denominator."""
    return part / whole if whole else 0.0


def harmonic(first: float, second: float) -> float:
    """The harmonic mean of two shares."""
    return ratio(2 * first * second, first + second)


def total(cells: Sequence[Cells]) -> Cells:
    """Adds up cell by cell."""
    kinds = dict.fromkeys(kind for item in cells for kind in item.groups)
    groups = {
        kind: (
            sum(item.groups[kind][0] for item in cells if kind in item.groups),
            sum(item.groups[kind][1] for item in cells if kind in item.groups),
        )
        for kind in kinds
    }
    sums = {name: sum(getattr(item, name) for item in cells) for name in CELLS}
    return Cells(**sums, groups=groups)


def width(kinds: Sequence[str]) -> int:
    """How many columns one part takes."""
    return len(CELLS) + 2 * len(kinds)


def unpack(sums: Sequence[float], parts: Sequence[str], kinds: Sequence[str]) -> dict[str, Cells]:
    """The cells of every part, from one row of column sums."""
    size, first = width(kinds), len(CELLS)
    found = {}
    for i, part in enumerate(parts):
        row = sums[i * size : (i + 1) * size]
        groups = {kind: (row[first + 2 * k], row[first + 2 * k + 1]) for k, kind in enumerate(kinds)}
        found[part] = Cells(**dict(zip(CELLS, row)), groups=groups)
    return found
