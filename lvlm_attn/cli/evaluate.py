"""`lvlm-attn eval pope` and `eval chair`: generate answers and score them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli.chair import Captions, Instances, truth_files
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
    Split,
    Suffix,
    Temperature,
    WithControls,
    check_decoding,
    check_out,
    finish,
    load_model,
    read_interventions,
    run_benchmark,
)
from lvlm_attn.cli.data import DataSet, FixTypo, Ids, Images, Parser, PopeScenes, Scenes, chair_of, pope_of
from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.evals.core.benchmark import Benchmark

app = typer.Typer(no_args_is_help=True, help="Measure hallucination: generate answers and score them.")


# Long because every option of the command is a parameter.
@app.command("pope")
def pope(
    model: Model,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            "--questions",
            help="A POPE question file, of lines as shown above; repeat for several.",
            show_default=False,
        ),
    ] = None,
    more_questions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE",
            help="Further question files, as `--questions *.json` gives them.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    data: DataSet = None,
    split: Split = "test",
    scenes: PopeScenes = 100,
    intervene: Intervene = None,
    parser: Parser = "strict",
    fix_typo: FixTypo = False,
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
    """Ask POPE's yes/no questions about objects and score the answers.

    Lines of questions: {"question_id": 1, "image": "dog.jpg", "text": "Is there a dog?", "label": "yes"}.

    Example: lvlm-attn eval pope --model toy --data toy --intervene var:rho=0.5
    """
    files = [*(questions or []), *(more_questions or [])]
    benchmark = pope_of(files, images, data, split, scenes, parser, limit, fix_typo)
    generation = Generation.given(locals())
    from lvlm_attn.evals.core.report import pope_table

    measure(benchmark, model, intervene, generation, pope_table, f"POPE, {model}, parser {parser}", as_json)


# Long because every option of the command is a parameter.
@app.command("chair")
def chair(
    model: Model,
    ids: Ids = None,
    images: Images = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--ground-truth", help="JSON lines {image_id, objects}, or COCO's files.", show_default=False
        ),
    ] = None,
    instances: Instances = None,
    captions: Captions = None,
    data: DataSet = None,
    split: Split = "test",
    scenes: Scenes = 100,
    intervene: Intervene = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What to ask.", show_default=False)] = None,
    mode: Annotated[str, typer.Option("--mode", help="strict, pattern or wordnet.")] = "strict",
    drop_incomplete_sentence: Annotated[
        bool,
        typer.Option(
            "--drop-unfinished-sentence",
            "--drop-incomplete-sentence",
            help="Cut captions after their last full stop.",
        ),
    ] = False,
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
    """Describe pictures and count objects that are not in them.

    Example: lvlm-attn eval chair --model toy --data toy --intervene vhr
    """
    from lvlm_attn.evals.chair.benchmark import PROMPT

    truth = truth_files(ground_truth, instances, captions)
    benchmark = chair_of(
        truth, images, ids, data, split, scenes, mode, drop_incomplete_sentence, prompt or PROMPT, limit
    )
    generation = Generation.given(locals())
    from lvlm_attn.evals.core.report import chair_table

    measure(
        benchmark,
        model,
        intervene,
        generation,
        chair_table,
        f"CHAIR, {model}, mode {mode}",
        as_json,
    )


def measure(
    benchmark: Benchmark,
    model: str,
    intervene: list[str] | None,
    generation: Generation,
    table: Callable[[dict[str, dict[str, Any]], str], Any],
    title: str,
    as_json: bool,
) -> None:
    """Checks what can be checked without the model, generates, scores and prints."""
    from lvlm_attn.evals.core.report import limits, seeds_told

    interventions = read_interventions(intervene)
    check_decoding(generation.decode, generation.temperature, generation.seeds)
    if generation.controls and not interventions:
        raise LvlmAttnError("--controls are for a method; name one with --intervene, or leave them out.")
    check_out(generation.out)
    loaded = load_model(model, generation.device, generation.dtype, generation.device_map)
    done, controlled = run_benchmark(benchmark, model, loaded, interventions, generation)
    name = "+".join(map(str, interventions)) or "baseline"
    told = f"{title}, {limits(done.generation)}{seeds_told(done.metrics)} (%)"
    finish(done, table({name: done.metrics}, told), as_json, controlled)
