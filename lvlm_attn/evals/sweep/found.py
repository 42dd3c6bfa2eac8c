"""What a sweep found: every point on the dev part, and the chosen one on the test part."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_attn.evals.compare import Comparison
from lvlm_attn.evals.core.report import limits
from lvlm_attn.evals.core.tables import Table, p_value, percent, rounded
from lvlm_attn.evals.pairing import Difference
from lvlm_attn.evals.wording import pair_table, verdict

BARE = "bare model"


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Attributes:
        by: the metric by which a point was chosen.
        dev: every point against the bare model, on the dev part; runs are named by their methods.
        chosen: the method that was best on the dev part.
        test: the chosen one against the bare model, on the test part; None if that was not asked for.
        folder: where all runs lie.
    """

    by: str
    dev: Comparison
    chosen: str
    test: Comparison | None
    folder: Path

    def points(self) -> Mapping[str, Difference]:
        """How the metric changed at every point, in the order of the grid."""
        return {name: pairing.metrics[self.by] for name, pairing in self.dev.runs.items()}

    def tables(self) -> list[Table]:
        """All points on dev, then the chosen one on test."""
        found = [self._dev_table()]
        if self.test is not None:
            found.append(pair_table(self.test, self.chosen))
        return found

    def sentences(self) -> list[str]:
        """Which point was chosen, and what it is worth on data it was not chosen on."""
        best = self.points()[self.chosen]
        told = (
            f"Chosen on dev by {self.by}: {self.chosen} ({self._written(best.after)}, the bare model "
            f"{self._written(best.before)}), the best of {len(self.points())} points"
        )
        is_lower = self.by in self.dev.tally.lower_is_better
        is_better = best.difference != 0 and (best.difference < 0) == is_lower
        found = [told + ("." if is_better else "; on dev it is no better than the bare model.")]
        found += [f"Warning: {warning}" for warning in self.dev.runs[self.chosen].warnings]
        if self.test is not None:
            found.append(f"On test, asked once: {verdict(self.test, self.chosen)}")
            found += [f"Warning: {warning}" for warning in self.test.runs[self.chosen].warnings]
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, shares as fractions of 1."""
        first = next(iter(self.dev.runs.values()))
        return {
            "by": self.by,
            "bare": {metric: _number(change.before) for metric, change in first.metrics.items()},
            "points": {
                name: {metric: _number(change.after) for metric, change in pairing.metrics.items()}
                for name, pairing in self.dev.runs.items()
            },
            "dev": self.dev.to_dict(),
            "chosen": self.chosen,
            "test": None if self.test is None else self.test.to_dict(),
            "folder": str(self.folder),
        }

    def _written(self, value: float) -> str:
        return f"{value:.2f}" if self.by in self.dev.tally.units else f"{percent(value)} %"

    def _dev_table(self) -> Table:
        tally = self.dev.tally
        shown = [self.by, *(name for name in tally.compared if name != self.by)]
        columns = ("point", f"change of {self.by}", "95 % interval", "p (Holm)", *shown, "n")
        first = next(iter(self.dev.runs.values()))
        bare = {metric: change.before for metric, change in first.metrics.items()}
        rows = [(BARE, "", "", "", *(self._cell(name, bare[name]) for name in shown), str(first.samples))]
        for name, pairing in self.dev.runs.items():
            change = pairing.metrics[self.by]
            scale, digits = (1.0, 2) if self.by in tally.units else (100.0, 1)
            low, high = (rounded(scale * value, digits, "+") for value in (change.low, change.high))
            told = ("-", "-", "-")
            if change.is_defined:
                told = (
                    rounded(scale * change.difference, digits, "+"),
                    f"{low} to {high}",
                    p_value(change.p_holm),
                )
            cells = (self._cell(metric, pairing.metrics[metric].after) for metric in shown)
            rows.append((name, *told, *cells, str(pairing.samples)))
        title = (
            f"{tally.title}, dev: all {len(self.dev.runs)} points ({limits(self.dev.reference.generation)}; % and "
            "points)"
        )
        return Table(title, columns, tuple(rows))

    def _cell(self, metric: str, value: float) -> str:
        return f"{value:.2f}" if metric in self.dev.tally.units else percent(value)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
