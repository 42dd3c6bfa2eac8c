"""Tables of finished text: plain lines that fit a terminal, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from lvlm_attn.errors import printable

_GAP = 2
_LEAST_WIDTH = 40


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
    """A fraction of 1 as a percentage without sign; a dash for None and nan."""
    return "-" if value is None else rounded(100 * value, digits)


def rounded(value: float, digits: int = 1, sign: str = "") -> str:
    """A number with so many decimals, a half always up, so that a change agrees with the two numbers it lies between.

    Args:
        value: the number; nan becomes a dash.
        digits: decimals.
        sign: "+" to write the sign of positive numbers too.

    Example:
        >>> rounded(48.75), rounded(48.75 - 50, sign="+"), rounded(-0.01, sign="+")
        ('48.8', '-1.2', '+0.0')
    """
    if not math.isfinite(value):
        return "-"
    steps = math.floor(round(value * 10**digits, 6) + 0.5)  # 6 digits: 0.1 + 0.05 is a half too
    return f"{steps / 10**digits:{sign}.{digits}f}"


def points(value: float, digits: int = 1) -> str:
    """A fraction of 1 as percentage points, with its sign."""
    return rounded(100 * value, digits, "+")


def p_value(value: float) -> str:
    """A p value with three digits."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def terminal_width() -> int:
    """Columns to write to: those of the terminal, 80 in a pipe or file."""
    return max(shutil.get_terminal_size((80, 24)).columns, _LEAST_WIDTH)


def plain(table: Table, width: int | None = None) -> str:
    """The table as aligned lines without any frame, none longer than `width`.

    A table that is too wide is not cut: its first column becomes a line above its rows, its number columns come in
    blocks below one another, and long text goes on in the next line.

    Args:
        table: the table.
        width: columns to write to; None for as many as it takes.

    Example:
        >>> print(plain(Table("Lengths (tokens)", ("run", "mean"), (("bare model", "30.2"),))))
        Lengths (tokens)
        run         mean
        bare model  30.2
    """
    table = _printable(table)
    title = table.title if width is None else textwrap.fill(table.title, width)
    if width is None or _natural(table) <= width:
        return "\n".join([title, *_aligned(table.columns, table.rows, table.text_columns)])
    if table.text_columns == len(table.columns):
        return "\n".join([title, *_wrapped(table, width)])
    lines = [title]
    for places, head in _blocks(table, width):
        columns = [table.columns[i] for i in places]
        rows = [[row[i] for i in places] for row in table.rows]
        texts = sum(i < table.text_columns for i in places)
        written = _aligned(columns, rows, texts)
        if not head:
            lines += ["", *written]
            continue
        lines += ["", f"{'':{_GAP}}{written[0]}"]
        before = None
        for row, line in zip(table.rows, written[1:], strict=True):
            if row[0] != before:
                lines += textwrap.wrap(row[0], width) or [""]
                before = row[0]
            lines.append(f"{'':{_GAP}}{line}")
    return "\n".join(lines)


def _printable(table: Table) -> Table:
    """The table with every cell on one line that a terminal can show; names come from data."""
    columns, *rows = (tuple(map(_cell, line)) for line in (table.columns, *table.rows))
    return Table(_cell(table.title), columns, tuple(rows), table.text_columns)


def _cell(text: str) -> str:
    return printable(text.replace("\n", "\\n").replace("\t", "\\t"))


def _widths(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[int]:
    lines = [columns, *rows]
    return [max(len(line[i]) for line in lines) for i in range(len(columns))]


def _natural(table: Table) -> int:
    widths = _widths(table.columns, table.rows)
    return sum(widths) + _GAP * (len(widths) - 1)


def _aligned(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> list[str]:
    rows = list(rows)
    widths = _widths(columns, rows)
    return [
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [columns, *rows]
    ]


def _blocks(table: Table, width: int) -> list[tuple[list[int], bool]]:
    """Which columns stand side by side, and whether the first column stands above its rows."""
    beside, above = (_split(table, width, head) for head in (False, True))
    head = len(above) < len(beside)
    return [(block, head) for block in (above if head else beside)]


def _split(table: Table, width: int, head: bool) -> list[list[int]]:
    widths = _widths(table.columns, table.rows)
    labels = list(range(int(head), table.text_columns))
    room = width - _GAP * head - sum(widths[i] + _GAP for i in labels)
    blocks: list[list[int]] = [[]]
    used = 0
    for i in range(table.text_columns, len(table.columns)):
        need = widths[i] + _GAP * bool(blocks[-1])
        if blocks[-1] and used + need > room:
            blocks.append([])
            used, need = 0, widths[i]
        blocks[-1].append(i)
        used += need
    return [[*labels, *block] for block in blocks]


def _wrapped(table: Table, width: int) -> list[str]:
    """Rows of text alone: the last column goes on below itself."""
    widths = _widths(table.columns, table.rows)
    lead = sum(widths[:-1]) + _GAP * (len(widths) - 1)
    if lead > width // 2:
        lines: list[str] = []
        for row in table.rows:
            for i, (name, cell) in enumerate(zip(table.columns, row, strict=True)):
                lines += textwrap.wrap(
                    f"{name}: {cell}" if i else cell, width - _GAP * bool(i),
                    initial_indent=" " * (_GAP * bool(i)), subsequent_indent=" " * (2 * _GAP),
                    break_on_hyphens=False,
                )  # fmt: skip
        return lines
    lines = []
    for row in [table.columns, *table.rows]:
        start = "".join(cell.ljust(widths[i] + _GAP) for i, cell in enumerate(row[:-1]))
        below = " " * lead
        if any(
            len(word) > width - lead for word in row[-1].split()
        ):  # a name is not broken where a line has room
            lines.append(start.rstrip())
            start = below = " " * (2 * _GAP)
        lines += textwrap.wrap(
            row[-1], width, initial_indent=start, subsequent_indent=below, break_on_hyphens=False
        ) or [start.rstrip()]
    return lines


def show(table: Table, stream: IO[str] | None = None) -> None:
    """Prints a table so that it fits the terminal, or 80 columns in a pipe or file.

    Args:
        table: the table.
        stream: where to; standard output by default.
    """
    print(plain(table, terminal_width()), file=stream or sys.stdout)


def filled(sentences: Iterable[str]) -> str:
    """Sentences as paragraphs that fit the terminal, or 80 columns in a pipe or file."""
    return "\n".join(textwrap.fill(text, terminal_width()) for text in sentences)


def markdown(table: Table) -> str:
    """The table in Markdown, title in bold above it."""
    right = ["---" if i < table.text_columns else "---:" for i in range(len(table.columns))]
    lines = [table.columns, tuple(right), *(tuple(_bar(cell) for cell in row) for row in table.rows)]
    return f"**{table.title}**\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _bar(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def comma_separated(table: Table) -> str:
    """The table as CSV, headings in the first line; the title is left out."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([table.columns, *table.rows])
    return written.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}


def latex_text(text: str) -> str:
    """Text with everything escaped that LaTeX reads as a command."""
    return "".join(_LATEX.get(character, character) for character in text)


def _latex_line(table: Table, cells: Sequence[str]) -> str:
    written = [
        text if i < table.text_columns else re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
        for i, text in enumerate(map(latex_text, cells))
    ]
    return " & ".join(written) + r" \\"


def _latex_label(title: str) -> str:
    """What the table is about, without the conditions in brackets."""
    words = re.findall(r"[a-z0-9]+", title.split(" (")[0].lower())
    return "tab:" + ("-".join(words) or "table")


def latex(table: Table) -> str:
    r"""The table for LaTeX, with `\usepackage{booktabs}`; the title is its caption, and its start the label."""
    kinds = "l" * table.text_columns + "r" * (len(table.columns) - table.text_columns)
    head, *rows = (_latex_line(table, line) for line in [table.columns, *table.rows])
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            rf"\label{{{_latex_label(table.title)}}}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            head,
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def html_table(table: Table) -> str:
    """The table as an HTML element, everything escaped."""

    def line(cells: Sequence[str], tag: str) -> str:
        marked = (
            f"<{tag}{' class=text' if i < table.text_columns else ''}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(marked)}</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    return (
        f"<table>\n<caption>{html.escape(table.title)}</caption>\n<thead>{line(table.columns, 'th')}</thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table>"
    )
