"""What controls found: one row each, whether the gain survives, and both in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lvlm_attn.evals.core.tables import Table, p_value, points

FILE = "controls.json"
"""Lies in the folder of the run that was controlled; the runs of the controls lie in ``controls`` beside it."""
LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """How the main metric differs between two runs.

    Attributes:
        difference: as a fraction of 1, positive where the metric is higher in the second run.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided.
    """

    difference: float
    low: float
    high: float
    p: float

    def told(self) -> str:
        """In points, with interval and p."""
        interval = f"{points(self.low)} to {points(self.high)}"
        return f"{points(self.difference)} points, 95 % interval {interval}, p {p_value(self.p)}"


@dataclass(frozen=True)
class Control:
    """One control.

    Attributes:
        name: short name.
        about: what stands against the method here.
        change: the method against the control; None where there was nothing to run.
        survives: whether the method is better than the control by more than chance; None where `change` is.
        remark: what else there is to say, a sentence or nothing.
    """

    name: str
    about: str
    change: Change | None
    survives: bool | None
    remark: str = ""


@dataclass(frozen=True)
class Controls:
    """The controls of one method on one benchmark.

    Attributes:
        title: the benchmark.
        method: the method as written on the command line.
        metric: the metric whose gain is in question.
        lower_is_better: whether it should fall.
        gain: the method against the bare model.
        is_gain: whether that is better by more than chance.
        conditions: decoding, token limit and number of samples.
        rows: the controls.
        details: further numbers, such as AUROC, by name.
    """

    title: str
    method: str
    metric: str
    lower_is_better: bool
    gain: Change
    is_gain: bool
    conditions: str
    rows: tuple[Control, ...]
    details: Mapping[str, float | None]

    @property
    def survives(self) -> bool:
        """Whether there is a gain, and it is larger than what every control gives."""
        return self.is_gain and all(row.survives is not False for row in self.rows)

    def verdict(self) -> str:
        """Whether the gain survives, in words."""
        told = f"Against the bare model {self.method} changes {self.metric} by {self.gain.told()}"
        if not self.is_gain:
            return f"{told}: that is no gain beyond chance, so there is none for the controls to explain."
        failed = [row for row in self.rows if row.survives is False]
        if not failed:
            names = _listed([row.name for row in self.rows if row.survives])
            return f"{told}. The gain survives every control: {names}."
        parts = [
            f"{row.about} (the method differs by {row.change.told()})"
            for row in failed
            if row.change is not None
        ]
        return f"{told}. The gain does not survive: within chance, as good is {'; as good is '.join(parts)}."

    def sentences(self) -> list[str]:
        """The verdict, what the controls showed besides, and the numbers beside them."""
        found = [self.verdict(), *(row.remark for row in self.rows if row.remark)]
        known = {name: value for name, value in self.details.items() if value is not None}
        if known:
            found.append(_listed([f"{name} {100 * value:.1f} %" for name, value in known.items()]) + ".")
        return found

    def table(self) -> Table:
        """One row per control: the method against it."""
        rows = []
        for row in self.rows:
            if row.change is None:
                rows.append((row.name, "-", "-", "-", "nothing to run"))
                continue
            answer = "-" if not self.is_gain else "yes" if row.survives else "no"
            cells = (
                points(row.change.difference),
                f"{points(row.change.low)} to {points(row.change.high)}",
                p_value(row.change.p),
            )
            rows.append((row.name, *cells, answer))
        title = f"{self.title}: {self.metric} of {self.method} against its controls, in points ({self.conditions})"
        columns = ("control", "difference", "95 % interval", "p", "gain survives")
        return Table(title, columns, tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; fractions of 1."""
        return {**asdict(self), "survives": self.survives, "verdict": self.verdict()}

    @staticmethod
    def of_dict(value: Mapping[str, Any]) -> Controls:
        """The inverse of :meth:`to_dict`.

        Raises:
            KeyError, TypeError: it is of another form.
        """
        rows = tuple(
            Control(**{**row, "change": None if row["change"] is None else Change(**row["change"])})
            for row in value["rows"]
        )
        names = ("title", "method", "metric", "lower_is_better", "is_gain", "conditions", "details")
        return Controls(gain=Change(**value["gain"]), rows=rows, **{name: value[name] for name in names})


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
