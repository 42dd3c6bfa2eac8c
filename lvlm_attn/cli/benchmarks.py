"""`lvlm-attn eval NAME` and `eval score NAME` for the benchmarks of closed questions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_attn.cli import amber, evaluate, score
from lvlm_attn.cli.common import (
    BatchSize,
    Decode,
    Device,
    DeviceMap,
    Dtype,
    Generation,
    Intervene,
    Json,
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
from lvlm_attn.evals.closed.catalogue import CLOSED

if TYPE_CHECKING:
    from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
    from lvlm_attn.evals.closed.spec import Closed

Data = Annotated[str, typer.Option("--data", help="Folder with your copy, or its name on the hub.")]
Parser = Annotated[
    str,
    typer.Option(
        "--parser",
        help="strict, or a published rule: amber, mme, naturalbench, dash-b, vlmeval, official, opera, vcd, lmms.",
    ),
]
Subset = Annotated[
    list[str] | None,
    typer.Option("--subset", help="Only this part of it; repeat for several.", show_default=False),
]
LimitPictures = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="Only the first so many pictures, or sets, of each part.", show_default=False
    ),
]


def load(
    spec: Closed, data: str, images: Path | None, parser: str, subset: list[str] | None, limit: int | None
) -> ClosedBenchmark:
    """Reads a copy of a benchmark and says what is to be known about it."""
    from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
    from lvlm_attn.evals.core.hub import local_copy

    place = local_copy(data, spec.title)
    found = ClosedBenchmark.from_folder(spec, place, images, parser, subset or (), limit)
    for remark in found.remarks:
        tell(f"note: {remark}")
    return found


def _evaluate(spec: Closed) -> Callable[..., None]:
    def command(
        model: Model,
        data: Data,
        images: Images = None,
        intervene: Intervene = None,
        parser: Parser = "strict",
        subset: Subset = None,
        limit: LimitPictures = None,
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
        from lvlm_attn.evals.closed.table import closed_table

        benchmark = load(spec, data, images, parser, subset, limit)
        benchmark.samples()  # pictures that are elsewhere are said before a model is loaded
        generation = Generation.given(locals())
        title = f"{spec.title}, {model}, parser {parser}"
        evaluate.measure(benchmark, model, intervene, generation, partial(closed_table, spec), title, as_json)

    return command


def _score(spec: Closed) -> Callable[..., None]:
    def command(
        answers: score.Answers,
        data: Annotated[
            str | None,
            typer.Option(
                "--data",
                help="Folder with your copy, or its name on the hub; not needed for runs of our own.",
                show_default=False,
            ),
        ] = None,
        parser: Parser = "strict",
        subset: Subset = None,
        answer_field: score.AnswerField = None,
        partial_: Annotated[
            bool, typer.Option("--partial", help="Score the answered questions only.")
        ] = False,
        as_json: Json = False,
    ) -> None:
        from lvlm_attn.evals.closed.scoring import score_files
        from lvlm_attn.evals.closed.table import closed_table

        benchmark = None if data is None else load(spec, data, None, parser, subset, None)
        done = score_files(spec, answers, benchmark, parser, partial_, answer_field)
        for note in done.notes:
            tell(f"note: {note}")
        if as_json:
            score.print_results(done.results, spec.name)
            return
        from lvlm_attn.evals.core.tables import show

        title = f"{spec.title}, parser {parser}, {score.made_with(answers)} (%)"
        show(closed_table(spec, done.results, title))

    return command


def register() -> None:
    """Adds the commands of every benchmark."""
    evaluate.app.command("amber-g")(amber.amber_g)
    score.app.command("amber-g")(amber.score_amber_g)
    for spec in CLOSED.values():
        example = f"Example: lvlm-attn eval {spec.name} --model llava-hf/llava-1.5-7b-hf --data FOLDER"
        evaluate.app.command(spec.name, help=f"{spec.about} ({spec.source})\n\n{example}")(_evaluate(spec))
        example = f"Example: lvlm-attn eval score {spec.name} --answers answers.json --data FOLDER --json"
        score.app.command(spec.name, help=f"Score answers to {spec.title}.\n\n{example}")(_score(spec))
