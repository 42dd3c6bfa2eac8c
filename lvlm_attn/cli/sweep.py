"""`lvlm-attn eval sweep`: choose parameters on dev pictures, report them once on test pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli.benchmarks import Parser, Subset, load
from lvlm_attn.cli.chair import Captions, Instances, Mode, truth_files
from lvlm_attn.cli.common import (
    BatchSize,
    Decode,
    Device,
    DeviceMap,
    Dtype,
    Generation,
    Json,
    Limit,
    MaxNewTokens,
    Model,
    Plugin,
    Seed,
    Seeds,
    Stopped,
    Suffix,
    Temperature,
    check_decoding,
    check_out,
    is_silent,
    load_model,
    print_json,
    say,
    tell,
)
from lvlm_attn.cli.data import FixTypo, Ids, Images, chair_of, pope_of
from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.closed.catalogue import CLOSED

if TYPE_CHECKING:
    from lvlm_attn.evals.core.benchmark import Benchmark

BENCHMARKS = ("pope", "chair", "amber-g", *CLOSED)


# Long because every option of the command is a parameter.
def sweep(
    model: Model,
    grid: Annotated[
        list[str],
        typer.Option("--grid", help="As `pai:alpha=0.1,0.2;gamma=1.0,1.1`; repeat for more points."),
    ],
    benchmark: Annotated[str, typer.Option("--benchmark", help=f"One of {', '.join(BENCHMARKS)}.")] = "pope",
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="Choose by this metric; accuracy (aAcc), chair_s or hal if not given.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="pope, chair: `toy`, the bundled scenes. Others: folder with your copy, or its name on the hub.",
            show_default=False,
        ),
    ] = None,
    subset: Subset = None,
    scenes: Annotated[
        int,
        typer.Option(
            "--scenes",
            min=1,
            help="Toy data: how many scenes; pope passes over those with fewer than 3 kinds of objects.",
        ),
    ] = 100,
    questions: Annotated[
        list[Path] | None,
        typer.Option("--questions", help="POPE question file; repeat for several.", show_default=False),
    ] = None,
    parser: Parser = "strict",
    fix_typo: FixTypo = False,
    images: Images = None,
    ids: Ids = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option("--ground-truth", help="CHAIR: JSON lines {image_id, objects}.", show_default=False),
    ] = None,
    instances: Instances = None,
    captions: Captions = None,
    mode: Mode = "strict",
    dev_share: Annotated[
        float,
        typer.Option("--dev-share", help="Files: share of the pictures to choose on; the rest is test."),
    ] = 0.2,
    limit: Limit = None,
    batch_size: BatchSize = 8,
    decode: Decode = "greedy",
    temperature: Temperature = 1.0,
    seed: Seed = 0,
    seeds: Seeds = 1,
    suffix: Suffix = "",
    max_new_tokens: MaxNewTokens = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the sweep.")] = Path("lvlm-runs/sweep"),
    plugin: Plugin = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    dtype: Dtype = "auto",
    as_json: Json = False,
) -> None:
    """Run all points of a grid on dev, report every one, and the chosen one once on test.

    The toy has dev and test scenes; pictures in files are parted by a hash of their names, pairs and sets kept whole.

    Example: lvlm-attn eval sweep --model toy --data toy --grid "pai:alpha=0.1,0.2;gamma=1.0,1.1"
    """
    from lvlm_attn.evals.sweep.grid import grid_points
    from lvlm_attn.hooks.parsing import parse

    if benchmark not in BENCHMARKS:
        raise LvlmAttnError(
            f"no sweep over {benchmark!r}.{closest(benchmark, BENCHMARKS)} Choose one of {', '.join(BENCHMARKS)}."
        )
    points = [parse(text) for text in grid_points(grid)]
    check_decoding(decode, temperature, seeds)
    files: dict[str, Any] = {
        "--questions": questions, "--ids": ids, "--ground-truth": ground_truth, "--instances": instances,
        "--captions": captions,
    }  # fmt: skip

    def make(split: str) -> Benchmark:
        if benchmark == "pope":
            return pope_of(questions or [], images, data, split, scenes, parser, limit, fix_typo)
        from lvlm_attn.evals.chair.benchmark import PROMPT

        truth = truth_files(ground_truth, instances, captions)
        return chair_of(truth, images, ids, data, split, scenes, mode, False, PROMPT, limit)

    if benchmark in ("pope", "chair"):
        if subset:
            raise LvlmAttnError(f"{benchmark} has no parts; leave out --subset.")
        dev, test = (make("dev"), make("test")) if data is not None else _parts(make("test"), dev_share)
    else:
        dev, test = _parts(_copy_of(benchmark, data, images, parser, subset, limit, files), dev_share)
    _run(model, points, dev, test, by, Generation.given(locals()), as_json)


def _copy_of(
    name: str,
    data: str | None,
    images: Path | None,
    parser: str,
    subset: list[str] | None,
    limit: int | None,
    files: Mapping[str, object],
) -> Benchmark:
    """A user's copy of a benchmark other than POPE and CHAIR."""
    given = [option for option, value in files.items() if value]
    if data is None or given:
        what = (
            f"is read from --data FOLDER alone; leave out {' and '.join(given)}"
            if given
            else "needs --data FOLDER"
        )
        raise LvlmAttnError(f"{name} {what}.")
    if name in CLOSED:
        return load(CLOSED[name], data, images, parser, subset, limit)
    if subset:
        raise LvlmAttnError(f"{name} has no parts; leave out --subset.")
    from lvlm_attn.evals.benchmarks import load_benchmark

    return load_benchmark(name, data, images, limit=limit)


def _parts(whole: Benchmark, share: float) -> tuple[Benchmark, Benchmark]:
    from lvlm_attn.evals.sweep.parts import PicturePart

    return PicturePart(whole, "dev", share), PicturePart(whole, "test", share)


def _run(
    model: str,
    points: list[Any],
    dev: Benchmark,
    test: Benchmark,
    by: str | None,
    generation: Generation,
    as_json: bool,
) -> None:
    from lvlm_attn.evals.core.runner import RunInterrupted
    from lvlm_attn.evals.core.tables import filled, show
    from lvlm_attn.evals.sweep.sweep import sweep as run_sweep

    tell(f"{len(points)} points on dev ({_size(dev)}), then one on test ({_size(test)}).")
    check_out(generation.out)
    loaded = load_model(model, generation.device, generation.dtype, generation.device_map)
    try:
        found = run_sweep(
            *loaded, dev, test, points, generation.out or Path("lvlm-runs/sweep"), by=by,
            decoding=generation.decoding(dev), batch_size=generation.batch_size, seed=generation.seed,
            seeds=generation.seeds, model_name=model, show_progress=sys.stderr.isatty(),
            on_note=lambda text: tell(f"note: {text}"), on_done=lambda name: tell(f"  {name}"),
        )  # fmt: skip
    except RunInterrupted as error:
        raise Stopped(str(error)) from None
    if is_silent() or found is None:
        return
    if as_json:
        print_json(found.to_dict())
        return
    for table in found.tables():
        show(table)
        say("")
    say(filled(found.sentences()))
    say(f"Written to {found.folder}")


def _size(benchmark: Benchmark) -> str:
    samples = benchmark.samples()
    return f"{len(samples)} samples, {len({sample.image_name for sample in samples})} pictures"
