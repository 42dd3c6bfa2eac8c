"""What the interventions of a wrap did, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Report:
    """What each intervention did since the wrap was entered.

    Attributes:
        model: family and size of the model.
        backend: the attention backend that computes what no intervention changes.
        interventions: canonical strings, with everything that was filled in for this model.
        rows: for each intervention, one dict per layer.
        kernels: which path computed what interventions change, and why not the other.
        skipped: for each intervention, the layers without softmax attention that it leaves out, as text.

    Example:
        >>> print(Report("LLaVA", "sdpa", ("vhr",), ([{"layer": 1, "heads_chosen": 2.0}],)))
        LLaVA, backend sdpa
        vhr
          layer  heads_chosen
              1          2.00
    """

    model: str
    backend: str
    interventions: tuple[str, ...]
    rows: tuple[list[dict[str, Any]], ...]
    kernels: str = ""
    skipped: tuple[str, ...] = ()

    @property
    def _entries(self) -> list[tuple[str, list[dict[str, Any]], str]]:
        skipped = self.skipped or ("",) * len(self.interventions)
        return list(zip(self.interventions, self.rows, skipped))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, for JSON."""
        return {
            "model": self.model,
            "backend": self.backend,
            "kernels": self.kernels,
            "interventions": [
                {"intervention": name, "layers": rows, "skipped_layers": skipped}
                for name, rows, skipped in self._entries
            ],
        }

    def __str__(self) -> str:
        kernels = f", kernels {self.kernels}" if self.kernels else ""
        lines = [f"{self.model}, backend {self.backend}{kernels}"]
        for name, rows, skipped in self._entries:
            lines.append(name)
            if skipped:
                lines.append(f"  layers {skipped} have no softmax attention and are skipped")
            lines += [f"  {line}" for line in _table(rows)] if rows else ["  nothing yet"]
        if not self.interventions:
            lines.append("no intervention changes anything")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """The report as tables, for notebooks."""
        kernels = f", kernels {self.kernels}" if self.kernels else ""
        parts = [f"<p>{escape(self.model)}, backend {escape(self.backend + kernels)}</p>"]
        for name, rows, skipped in self._entries:
            parts.append(f"<p><b>{escape(name)}</b></p>")
            if skipped:
                parts.append(f"<p>layers {escape(skipped)} have no softmax attention and are skipped</p>")
            parts.append(_html_table(rows) if rows else "<p>nothing yet</p>")
        if not self.interventions:
            parts.append("<p>no intervention changes anything</p>")
        return "\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    names = list(rows[0])
    cells = [names] + [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return ["  ".join(text.rjust(width) for text, width in zip(line, widths)) for line in cells]


def _html_table(rows: list[dict[str, Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = "".join(
        "<tr>"
        + "".join(f'<td style="text-align:right">{escape(_cell(row[name]))}</td>' for name in rows[0])
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if 0 < abs(value) < 1 else f"{value:.2f}"
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
