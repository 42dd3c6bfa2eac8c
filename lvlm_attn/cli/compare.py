"""`lvlm-attn eval compare` and `eval report`: what finished runs say about each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.cli.common import Json, print_json, say, tell
from lvlm_attn.errors import LvlmAttnError, closest

FORMATS = ("md", "csv", "latex", "html")

Runs = Annotated[
    list[Path], typer.Argument(help="Run folders, or folders of several seeds; the first is the reference.")
]
Force = Annotated[
    bool, typer.Option("--force", help="Compare runs with other decoding, questions or limits all the same.")
]
Resamples = Annotated[
    int, typer.Option("--resamples", min=100, help="Draws of pictures for intervals and p.")
]


def compare(runs: Runs, force: Force = False, resamples: Resamples = 2000, as_json: Json = False) -> None:
    """Compare runs with the first one: paired differences, intervals over pictures, exact tests.

    Example: lvlm-attn eval compare runs/baseline runs/vhr runs/var
    """
    from lvlm_attn.evals.compare import compare as compare_runs

    done = compare_runs(list(runs), force=force, resamples=resamples)
    if as_json:
        print_json(done.to_dict())
        for name, pairing in done.runs.items():
            for warning in pairing.warnings:
                tell(f"warning: {name}: {warning}")
        return
    say(str(done))


def report(
    runs: Runs,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="md, csv, latex or html; told by the file name if not given.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; standard output if not given.", show_default=False),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            "--images", help="Folder of the pictures, for html, if it has moved.", show_default=False
        ),
    ] = None,
    force: Force = False,
    resamples: Resamples = 2000,
) -> None:
    """Write tables of runs, their differences, and in html also the samples on which they differ.

    Example: lvlm-attn eval report runs/baseline runs/vhr --format latex -o table.tex
    """
    chosen = _format(form, out)
    from lvlm_attn.evals.reporting import report as make_report

    made = make_report(list(runs), force=force, resamples=resamples)
    if chosen == "html":
        from lvlm_attn.cli.pictures import picture_source
        from lvlm_attn.evals.page import page

        text = page(made, picture_source(images))
    else:
        text = made.text(chosen)
    for warning in made.warnings():
        tell(f"warning: {warning}")
    if out is None:
        say(text.removesuffix("\n"))
        return
    from lvlm_attn.evals.core.jsonio import write_text

    if out.parent != Path():
        out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    tell(f"Written to {out}")


def _format(form: str | None, out: Path | None) -> str:
    ends = {".md": "md", ".csv": "csv", ".tex": "latex", ".html": "html", ".htm": "html"}
    if form is None:
        form = ends.get(out.suffix.lower(), "md") if out is not None else "md"
    form = {"markdown": "md", "tex": "latex"}.get(form, form)
    if form not in FORMATS:
        raise LvlmAttnError(
            f"no report format {form!r}.{closest(form, FORMATS)} Choose one of {', '.join(FORMATS)}."
        )
    return form
