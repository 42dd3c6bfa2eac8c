"""A report on runs: their scores, how they differ from the first, and what that means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.compare import Comparison, compare
from lvlm_attn.evals.controls.controls import read_controls
from lvlm_attn.evals.core.finished import Run, read_runs
from lvlm_attn.evals.core.image_tokens import removed_sentence
from lvlm_attn.evals.core.tables import Table, comma_separated, latex, markdown
from lvlm_attn.evals.core.tally import Tally
from lvlm_attn.evals.tallies import tally_of
from lvlm_attn.evals.wording import overview_table, pair_table, result_table, score, verdict


@dataclass(frozen=True)
class Section:
    """The runs of one benchmark.

    Attributes:
        runs: the runs; the first is the reference.
        tally: how their benchmark counts.
        comparison: the others against the first; None for a single run.
        notes: further sentences, such as what controls showed.
        extra: further tables.
    """

    runs: tuple[Run, ...]
    tally: Tally
    comparison: Comparison | None
    notes: tuple[str, ...] = ()
    extra: tuple[Table, ...] = ()

    def tables(self) -> list[Table]:
        """Scores, then the differences."""
        found = [result_table(self.runs, self.tally)]
        if self.comparison is not None:
            if len(self.comparison.runs) > 1:
                found.append(overview_table(self.comparison))
            found += [pair_table(self.comparison, name) for name in self.comparison.runs]
        return [*found, *self.extra]

    def sentences(self) -> list[str]:
        """What each comparison shows, and what makes it doubtful."""
        said: list[str] = []
        if self.comparison is not None:
            for name, pairing in self.comparison.runs.items():
                said.append(verdict(self.comparison, name))
                said += [f"Warning: {name}: {warning}" for warning in pairing.warnings]
        for run in self.runs:
            if noted := removed_sentence(run.metrics):
                said.append(f"{run.name}: {noted}.")
        return [*said, *self.notes]


@dataclass(frozen=True)
class Report:
    """A report; one section per benchmark."""

    sections: tuple[Section, ...]

    def warnings(self) -> list[str]:
        """What makes a comparison doubtful."""
        return [
            f"{name}: {warning}"
            for section in self.sections
            if section.comparison is not None
            for name, pairing in section.comparison.runs.items()
            for warning in pairing.warnings
        ]

    def settings(self) -> Table:
        """Which run is what."""
        rows = tuple(
            (run.name, run.methods, str(run.path)) for section in self.sections for run in section.runs
        )
        return Table("Runs", ("run", "methods", "folder"), rows, text_columns=3)

    def text(self, form: str) -> str:
        """The report as `md`, `csv` or `latex`; CSV is one table with a row per run and metric."""
        if form == "csv":
            return comma_separated(tidy_table(self.sections))
        write = {"md": markdown, "latex": latex}[form]
        parts = ["% The preamble needs \\usepackage{booktabs}.\n"] if form == "latex" else []
        for section in self.sections:
            parts += [write(table) for table in section.tables()]
            mark = "- " if form == "md" else "% "
            parts.append("".join(f"{mark}{sentence}\n" for sentence in section.sentences()))
        parts.append(write(self.settings()))
        return "\n".join(part for part in parts if part.strip())


def tidy_table(sections: Sequence[Section]) -> Table:
    """One row per run and metric, shares as fractions of 1, for other programs."""
    columns = (
        "benchmark", "run", "methods", "metric", "unit", "value", "reference", "difference", "low", "high",
        "p", "p_holm", "noise_floor", "n", "pictures", "seeds", "decode", "max_new_tokens",
    )  # fmt: skip
    rows = []
    for section in sections:
        for run in section.runs:
            rows += [_tidy_row(section, run, metric) for metric in section.tally.compared]
    return Table("Metrics", columns, tuple(rows), text_columns=5)


def _tidy_row(section: Section, run: Run, metric: str) -> tuple[str, ...]:
    tally, comparison = section.tally, section.comparison
    values = [score(run, lines, tally)[metric] for lines in run.seeds]
    compared = [""] * 7
    if comparison is not None and run.name in comparison.runs:
        change = comparison.runs[run.name].metrics[metric]
        keys = ("difference", "low", "high", "p", "p_holm", "noise")
        told = (repr(getattr(change, key)) if change.is_defined else "" for key in keys)
        compared = [comparison.reference.name, *told]
    labels = (tally.title, run.name, run.methods, metric, tally.units.get(metric, "share"))
    sizes = (len(run.lines), len({tally.cluster(line) for line in run.lines}), len(run.seeds))
    decoding = (str(run.generation.get(key, "")) for key in ("decode", "max_new_tokens"))
    value = sum(values) / len(values)
    return (*labels, "" if math.isnan(value) else repr(value), *compared, *map(str, sizes), *decoding)


def report(runs: Sequence[str | Path], *, force: bool = False, resamples: int = 2000) -> Report:
    """Reads runs and compares, per benchmark, all others with the first.

    Args:
        runs: run folders.
        force: compare runs that were not made alike.
        resamples: draws of pictures.

    Raises:
        LvlmAttnError: no runs, or as `lvlm_attn.compare`.
    """
    if not runs:
        raise LvlmAttnError("a report needs at least one run; name run folders.")
    groups: dict[str, list[Run]] = {}
    for run in read_runs(runs):
        groups.setdefault(run.benchmark, []).append(run)
    return Report(tuple(_section(group, force, resamples) for group in groups.values()))


def _section(runs: list[Run], force: bool, resamples: int) -> Section:
    tally = tally_of(runs[0].benchmark, runs[0].scoring, runs[0].lines)
    found = compare(runs, force=force, resamples=resamples) if len(runs) > 1 else None
    controlled = [(run.name, read_controls(run.path)) for run in runs]
    told = [(name, item) for name, item in controlled if item is not None]
    notes = tuple(f"Controls of {name}: {text}" for name, item in told for text in item.sentences())
    return Section(tuple(runs), tally, found, notes, tuple(item.table() for _, item in told))
