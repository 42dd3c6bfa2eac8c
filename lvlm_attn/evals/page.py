"""A report as one HTML file: tables, intervals drawn, and the samples on which runs differ, with their pictures.

Nothing is fetched from elsewhere: styles, script, drawings and pictures are inside the file, and its content policy
forbids anything else. Every text that comes from a run is escaped.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lvlm_attn.evals.chair.marking import marked
from lvlm_attn.evals.compare import Comparison
from lvlm_attn.evals.core.finished import Run
from lvlm_attn.evals.core.tables import html_table
from lvlm_attn.evals.interval_plot import interval_plot
from lvlm_attn.evals.page_style import SCRIPT, STYLE
from lvlm_attn.evals.reporting import Report, Section

if TYPE_CHECKING:
    from PIL.Image import Image

Pictures = Callable[[Run, Mapping[str, Any]], "Image | None"]
_SIDE = 288
SAMPLES = 60
"""So many samples of each pair of runs are shown, half of them better and half worse where there are enough."""


def page(report: Report, pictures: Pictures, samples: int = SAMPLES) -> str:
    """Writes a report as a page.

    Args:
        report: what to show.
        pictures: gives the picture of a line, or None where it cannot be had.
        samples: how many differing samples of each pair of runs are shown.
    """
    title = "lvlm-attn: " + ", ".join(run.name for section in report.sections for run in section.runs)
    body = "\n".join(_section(section, pictures, samples) for section in report.sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
<h2>Runs</h2>
{_wide(html_table(report.settings()))}
<script>{SCRIPT}</script>
</body>
</html>
"""


def _wide(table: str) -> str:
    return f'<div class="wide">{table}</div>'


def _section(section: Section, pictures: Pictures, samples: int) -> str:
    first, *others = section.tables()
    parts = [f"<h2>{html.escape(section.tally.title)}</h2>", _wide(html_table(first))]
    said = section.sentences()
    if said:
        items = "".join(
            f"<li{' class=warning' if text.startswith('Warning') else ''}>{html.escape(text)}</li>"
            for text in said
        )
        parts.append(f"<ul>{items}</ul>")
    if section.comparison is not None:
        parts.append(interval_plot(section.comparison))
    parts += [_wide(html_table(table)) for table in others]
    if section.comparison is not None:
        parts.append(_samples(section.comparison, pictures, samples))
    return "\n".join(parts)


def _samples(comparison: Comparison, pictures: Pictures, samples: int) -> str:
    cards = [card for name in comparison.runs for card in _cards(comparison, name, pictures, samples)]
    if not cards:
        return "<p>No sample is answered rightly by one of the runs and wrongly by the other.</p>"
    options = "".join(
        f'<option value="{html.escape(name)}">{html.escape(name)}</option>' for name in comparison.runs
    )
    return f"""<h3>Samples that differ</h3>
<form class="filters" onsubmit="return false">
<label>Run <select data-filter="run"><option value="">all</option>{options}</select></label>
<label>Change <select data-filter="change"><option value="">all</option><option>better</option>
<option>worse</option></select></label>
<label>Text <input data-filter="text" type="search" placeholder="word in question or answer"></label>
<output></output>
</form>
<div class="cards">
{"".join(cards)}
</div>"""


def _cards(comparison: Comparison, name: str, pictures: Pictures, samples: int) -> Iterator[str]:
    run = comparison.runs[name].run
    tally, scoring = comparison.tally, comparison.reference.scoring
    before = {line["sample_id"]: line for line in comparison.reference.lines}
    seen = set()
    changed: dict[str, list[tuple[Mapping[str, Any], Mapping[str, Any]]]] = {"better": [], "worse": []}
    for line in run.lines:
        other = before.get(line["sample_id"])
        if other is None or tally.question(line) in seen:
            continue
        seen.add(tally.question(line))
        right = [tally.is_right(tally.count(item, scoring)) for item in (other, line)]
        if right[0] != right[1]:
            changed["better" if right[1] else "worse"].append((other, line))
    room = samples - min(len(changed["better"]), len(changed["worse"]), samples // 2)
    for change, pairs in changed.items():
        for other, line in pairs[:room]:
            yield _card(comparison, name, change, (other, line), pictures(run, line))


def _card(
    comparison: Comparison,
    name: str,
    change: str,
    lines: tuple[Mapping[str, Any], Mapping[str, Any]],
    picture: Image | None,
) -> str:
    mode = str(comparison.reference.scoring.get("mode", "strict"))
    answers = "".join(
        f"<dt>{html.escape(title)}</dt><dd>{_answer(line, mode)}</dd>"
        for title, line in zip((comparison.reference.name, name), lines, strict=True)
    )
    line = lines[0]
    truth = line.get("label") or ", ".join(map(str, line.get("objects") or line.get("truth") or []))
    shown = (
        f'<img src="{_data_url(picture)}" alt="{html.escape(str(line.get("image")))}">'
        if picture is not None
        else '<div class="missing">picture not found</div>'
    )
    return f"""<article data-run="{html.escape(name)}" data-change="{change}">
{shown}
<div><p class="tag {change}">{change}: {html.escape(name)}</p>
<p><b>{html.escape(str(line.get("question", "")))}</b></p>
<p class="truth">{html.escape(str(line.get("sample_id")))}; right: {html.escape(str(truth))}</p>
<dl>{answers}</dl></div>
</article>
"""


def _answer(line: Mapping[str, Any], mode: str) -> str:
    text = str(line.get("raw_text") or "").strip()
    if not isinstance(line.get("objects"), list):
        return html.escape(text)
    tags = {"there": "b", "hallucinated": "mark"}
    return "".join(
        html.escape(piece) if kind == "text" else f"<{tags[kind]}>{html.escape(piece)}</{tags[kind]}>"
        for piece, kind in marked(text, line["objects"], mode)
    )


def _data_url(picture: Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    written = io.BytesIO()
    small.save(written, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(written.getvalue()).decode()
