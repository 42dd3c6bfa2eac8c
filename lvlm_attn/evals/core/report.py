"""Results as tables: rich on a terminal, aligned plain lines elsewhere, Markdown for a README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any


@dataclass(frozen=True)
class Table:
    """A table of finished text.

    Attributes:
        title: one line above it.
        columns: headings.
        rows: cells, as many per row as there are columns; the first columns are text, the others numbers.
        text_columns: how many columns are text, set left.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 1 as a percentage without sign; a dash for None."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def pope_table(runs: Mapping[str, Mapping[str, Any]], title: str = "POPE (%)") -> Table:
    """One row per run and category, and the mean over categories where there are several.

    Args:
        runs: results of :func:`lvlm_attn.evals.pope.score.score_pope` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "questions",
        "accuracy",
        "precision",
        "recall",
        "F1",
        "yes",
        "false yes",
        "unknown",
        "n",
    )
    rows = []
    for name, result in runs.items():
        parts = dict(result["per_category"])
        if len(parts) > 1:
            parts["mean"] = {**result["mean"], "unknown": result["unknown"], "n": result["n"]}
        for category, row in parts.items():
            shares = ("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_rate")
            cells = (percent(row[key], 2) for key in shares)
            rows.append((name, category, *cells, str(row["unknown"]), str(row["n"])))
    return Table(title, columns, tuple(rows), text_columns=2)


def chair_table(runs: Mapping[str, Mapping[str, Any]], title: str = "CHAIR (%)") -> Table:
    """One row per run.

    Args:
        runs: results of :func:`lvlm_attn.evals.chair.score.score_chair` by the name of the run.
        title: the table's title.
    """
    columns = (
        "run",
        "CHAIR_s",
        "CHAIR_i",
        "recall",
        "precision",
        "F1",
        "tokens",
        "objects",
        "cut off",
        "n",
    )
    rows = []
    for name, row in runs.items():
        shares = (percent(row[key]) for key in ("chair_s", "chair_i", "recall", "precision", "f1"))
        lengths = (f"{row['len']:.1f}", f"{row['mentions_per_caption']:.2f}")
        rows.append((name, *shares, *lengths, percent(row["truncated"]), str(row["n"])))
    return Table(title, columns, tuple(rows))


def comparison_table(tests: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row per comparison with the baseline.

    Args:
        tests: results of :mod:`lvlm_attn.evals.core.compare` by name, ``p_holm`` added where there are several.
        title: the table's title.
    """
    columns = ("run", "difference", "95 % interval", "better", "worse", "p", "p (Holm)")
    rows = []
    for name, test in tests.items():
        adjusted = test.get("p_holm", test["mcnemar_p"])
        rows.append(
            (
                name,
                *difference_cells(test),
                str(test["only_second_right"]),
                str(test["only_first_right"]),
                p_value(test["mcnemar_p"]),
                p_value(adjusted),
            )
        )
    return Table(title, columns, tuple(rows))


def difference_cells(test: Mapping[str, Any]) -> tuple[str, str]:
    """A comparison's difference and its interval, in points."""
    return (
        f"{100 * test['difference']:+.1f}",
        f"{100 * test['low']:+.1f} to {100 * test['high']:+.1f}",
    )


def p_value(value: float) -> str:
    """A p-value with three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def markdown(table: Table) -> str:
    """The table in Markdown, title in bold above it."""
    right = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    lines = [table.columns, tuple(right), *table.rows]
    return f"**{table.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def plain(table: Table) -> str:
    """The table as aligned lines without any frame."""
    lines: Sequence[tuple[str, ...]] = [table.columns, *table.rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(table.columns))]
    aligned = (
        "  ".join(
            cell.ljust(width) if i < table.text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in lines
    )
    return "\n".join([table.title, *aligned])


def show(table: Table, stream: IO[str] | None = None) -> None:
    """Prints a table: drawn by rich on a terminal, as plain lines into a pipe or file.

    Args:
        table: the table.
        stream: where to; standard output by default.
    """
    import sys

    target = stream or sys.stdout
    if not target.isatty():
        print(plain(table), file=target)
        return
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(title=table.title, title_justify="left")
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="left" if i < table.text_columns else "right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*row)
    Console(file=target).print(drawn)
