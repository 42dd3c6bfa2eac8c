"""`lvlm-attn eval amber-g` and `eval score amber-g`: descriptions scored with AMBER's annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli import score
from lvlm_attn.cli.common import (
    BatchSize,
    Decode,
    Device,
    DeviceMap,
    Dtype,
    Generation,
    Intervene,
    Json,
    Limit,
    MaxNewTokens,
    Model,
    Out,
    Plugin,
    Seed,
    Seeds,
    Suffix,
    Temperature,
    WithControls,
    tell,
)
from lvlm_attn.cli.data import Images

if TYPE_CHECKING:
    from lvlm_attn.evals.core.tables import Table

_NOTE = "nouns are matched exactly and by AMBER's associated words; its similarity step is left out."


def amber_g(
    model: Model,
    data: Annotated[Path, typer.Option("--data", help="Folder with your copy of AMBER.")],
    images: Images = None,
    intervene: Intervene = None,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    decode: Decode = "greedy",
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    seeds: Seeds = 1,
    suffix: Suffix = "",
    max_new_tokens: MaxNewTokens = None,
    controls: WithControls = False,
    out: Out = None,
    plugin: Plugin = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """AMBER, generative: objects of descriptions, without its similarity step (arXiv 2311.07397).

    Example: lvlm-attn eval amber-g --model llava-hf/llava-1.5-7b-hf --data AMBER/data --images AMBER/image
    """
    from lvlm_attn.cli import evaluate
    from lvlm_attn.evals.amber.benchmark import AmberCaptions

    benchmark = AmberCaptions.from_folder(data, images, limit)
    benchmark.samples()  # pictures that are elsewhere are said before a model is loaded
    tell(f"note: {_NOTE}")
    generation = Generation.given(locals())
    evaluate.measure(benchmark, model, intervene, generation, table, f"AMBER generative, {model}", as_json)


def score_amber_g(
    answers: score.Answers,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="Folder with your copy; not needed for runs of our own.", show_default=False
        ),
    ] = None,
    answer_field: score.AnswerField = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score the described pictures only.")] = False,
    as_json: Json = False,
) -> None:
    """Score descriptions of AMBER's pictures, without its similarity step.

    Example: lvlm-attn eval score amber-g --answers answers.json --data AMBER/data
    """
    from lvlm_attn.evals.amber.scoring import score_files
    from lvlm_attn.evals.core.tables import show

    results, notes = score_files(answers, data, partial, answer_field)
    for note in (*notes, _NOTE):
        tell(f"note: {note}")
    if as_json:
        score.print_results(results, "amber-g")
        return
    show(table(results, f"AMBER generative, {score.made_with(answers)} (%)"))


def table(runs: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row per run."""
    from lvlm_attn.evals.core.report import counted, with_spread
    from lvlm_attn.evals.core.tables import Table, percent

    columns = ("run", "CHAIR", "Cover", "Hal", "Cog", "words", "nouns", "n")
    shares: Sequence[str] = ("chair", "cover", "hal", "cog")
    rows = []
    for name, row in runs.items():
        wide = row.get("spread", {})
        cells = [with_spread(percent, row, wide, key) for key in shares]
        cells += [with_spread(_plain, row, wide, key) for key in ("len", "nouns_per_response")]
        rows.append((name, *cells, counted(row["n"])))
    return Table(title, columns, tuple(rows))


def _plain(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"
