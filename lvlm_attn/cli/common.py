"""What several commands share: options, loading a model, running a benchmark, printing a result."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.errors import LvlmAttnError, closest, printable, shown

if TYPE_CHECKING:
    from lvlm_attn.evals.controls.found import Controls
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.evals.core.benchmark import Benchmark
    from lvlm_attn.evals.core.evaluate import Evaluation
    from lvlm_attn.interventions.base import Intervention

SAME_ANSWERS = 4
"""So many answers that are all the same are told."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


def _plain_folder(name: str) -> str:
    """One spelling for every spelling of a folder, so that runs of `./model` and `model/` are of the same model."""
    return os.path.normpath(name) if Path(name).is_dir() else name


Model = Annotated[str, typer.Option("--model", help="`toy`, a hub id, or a folder.", callback=_plain_folder)]
Intervene = Annotated[
    list[str] | None,
    typer.Option(
        "--intervene", help="A method, e.g. `var:rho=0.5`; repeat it, or join with `+`.", show_default=False
    ),
]
Device = Annotated[
    str, typer.Option("--device", help="`auto`, `cuda`, `mps`, `cpu`, or one GPU as `cuda:1`.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option("--device-map", help="`auto` spreads a model over all devices.", show_default=False),
]
Dtype = Annotated[str, typer.Option("--dtype", help="`auto`, `float32`, `bfloat16` or `float16`.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="Only the first so many questions of each split, or pictures.",
        show_default=False,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Prompts per forward pass.")]
Decode = Annotated[str, typer.Option("--decode", help="`greedy`, or `sample` from the whole distribution.")]
Temperature = Annotated[float, typer.Option("--temperature", help="For `--decode sample`.")]
Seed = Annotated[int, typer.Option("--seed", help="Seeds sampling; each sample has a seed of its own.")]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds",
        min=1,
        help="For `--decode sample`: so many runs, from --seed on; tables show mean and spread.",
    ),
]
WithControls = Annotated[
    bool,
    typer.Option("--controls", help="Also run what else could explain a gain, and say whether it survives."),
]
Suffix = Annotated[
    str, typer.Option("--suffix", help="Text put after every question; `\\n` is a line break.")
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Length limit of an answer.", show_default=False)
]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Run folder; named after the settings if not given.", show_default=False),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, fractions of 1, and nothing else.")
]
Split = Annotated[str, typer.Option("--split", help="Toy data: `dev` to tune on, `test` to report.")]


def _load_plugins(paths: list[Path] | None) -> list[Path] | None:
    """Registers what plugin files define as soon as they are named."""
    if paths:
        from lvlm_attn.hooks.plugins import load_plugin

        for path in paths:
            load_plugin(path)
    return paths


Plugin = Annotated[
    list[Path] | None,
    typer.Option(
        "--plugin",
        help="A Python file that defines methods or model families of your own; repeat for several.",
        show_default=False,
        callback=_load_plugins,
    ),
]


class Stopped(LvlmAttnError):
    """Ctrl-C; the message tells what is kept."""


def read_interventions(texts: Sequence[str] | None) -> tuple[Intervention, ...]:
    """Parses every ``--intervene``."""
    from lvlm_attn.hooks.parsing import parse

    return tuple(item for text in texts or () for item in parse(text))


def load_model(
    name: str, device: str = "auto", dtype: str = "auto", device_map: str | None = None
) -> tuple[Any, Any]:
    """Loads a model and its processor onto a device, and says what `auto` chose.

    Raises:
        LvlmAttnError: unknown dtype or device, or the model cannot be loaded.
    """
    if dtype not in DTYPES:
        raise LvlmAttnError(f"no dtype {dtype!r}.{closest(dtype, DTYPES)} Choose one of {', '.join(DTYPES)}.")
    if device_map is not None and device != "auto":
        raise LvlmAttnError(f"--device {device} and --device-map {device_map} exclude each other; give one.")
    quiet_transformers()
    from lvlm_attn.evals.core.ranks import local_device
    from lvlm_attn.loading import load

    options = {} if device_map is None else {"device_map": device_map}
    loaded = load(
        name,
        device=None if device == "auto" else local_device(device),
        dtype=None if dtype == "auto" else dtype,
        **options,
    )
    tell(f"Model {name}: {_chosen(loaded[0])}.")
    return loaded


def _chosen(model: Any) -> str:
    """Device, dtype, backend and kernels of a model."""
    from lvlm_attn.families.devices import execution_device
    from lvlm_attn.kernels.dispatch import picked
    from lvlm_attn.runtime.transformers_private import attention_of

    places = sorted({str(item.device) for item in model.parameters()})
    backend = attention_of(model.config.get_text_config())
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{' and '.join(places)}, {dtype}, attention {backend}, kernels {picked(execution_device(model))}"


def quiet_transformers() -> None:
    """Keeps progress bars of loading off logs and pipes."""
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are generated and where they go, as given on the command line."""

    decode: str = "greedy"
    temperature: float = 1.0
    suffix: str = ""
    max_new_tokens: int | None = None
    batch_size: int = 8
    seed: int = 0
    seeds: int = 1
    out: Path | None = None
    device: str = "auto"
    dtype: str = "auto"
    device_map: str | None = None
    controls: bool = False

    @staticmethod
    def given(options: Mapping[str, Any]) -> Generation:
        """Taken from a command's parameters, which have the same names."""
        names = [item.name for item in fields(Generation)]
        return Generation(**{name: options[name] for name in names if name in options})

    def decoding(self, benchmark: Benchmark) -> Decoding:
        """What the runner is told."""
        from lvlm_attn.evals.core.answerer import Decoding

        limit = self.max_new_tokens or benchmark.max_new_tokens
        return Decoding(self.decode, limit, self.temperature, self.suffix.replace("\\n", "\n"))


def run_benchmark(
    benchmark: Benchmark,
    model_name: str,
    loaded: tuple[Any, Any],
    interventions: Sequence[Intervention],
    generation: Generation,
) -> tuple[Evaluation, Controls | None]:
    """Evaluates with a progress bar on a terminal; Ctrl-C becomes :class:`Stopped`."""
    from lvlm_attn.evals.controls.controls import evaluate_with_controls
    from lvlm_attn.evals.core.evaluate import evaluate
    from lvlm_attn.evals.core.runner import RunInterrupted

    options: dict[str, Any] = {
        "out": generation.out,
        "decoding": generation.decoding(benchmark),
        "batch_size": generation.batch_size,
        "seed": generation.seed,
        "seeds": generation.seeds,
        "model_name": model_name,
        "show_progress": sys.stderr.isatty(),
        "on_note": lambda text: tell(f"note: {text}"),
    }
    try:
        if generation.controls:
            return evaluate_with_controls(*loaded, benchmark, interventions, **options)
        return evaluate(*loaded, benchmark, interventions, **options), None
    except RunInterrupted as error:
        raise Stopped(str(error)) from None


def check_out(out: Path | None) -> None:
    """Proves before a model is loaded that results can be written."""
    from lvlm_attn.evals.core.evaluate import RUNS
    from lvlm_attn.evals.core.ranks import Ranks
    from lvlm_attn.evals.core.run_folder import check_writable

    Ranks.of_environment().first(lambda: check_writable(out or RUNS))


def check_decoding(decode: str, temperature: float, seeds: int = 1) -> None:
    """Checks decoding options before a model is loaded."""
    from lvlm_attn.evals.core.answerer import Decoding

    Decoding(decode, 1, temperature)
    if seeds > 1 and decode != "sample":
        raise LvlmAttnError(f"--seeds {seeds} is for sampling; add --decode sample, or leave it out.")


def is_silent() -> bool:
    """Whether another rank does the talking."""
    from lvlm_attn.evals.core.ranks import process_rank

    return process_rank()[0] > 0


def print_json(value: object) -> None:
    """The one object on standard output."""
    text = json.dumps(value, ensure_ascii=False)
    # A lone surrogate cannot be encoded; as an escape it is JSON all the same.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def tell(text: str) -> None:
    """A remark on standard error, so that standard output stays the result; from rank 0 alone."""
    if not is_silent():
        typer.echo(printable(text), err=True)


def say(text: str) -> None:
    """Text on standard output; what data and answers hold of escape codes is shown as text."""
    typer.echo(printable(text))


def tell_same_answer(texts: Sequence[str], run: str = "") -> None:
    """A remark where a model says the same whatever it is shown; few answers may be the same by chance."""
    words = {text.strip().rstrip(".").lower() for text in texts}
    if len(texts) >= SAME_ANSWERS and len(words) == 1:
        tell(
            f"note: {run}every answer is {shown(*words)}; look at the prompt and the method before the scores."
        )


def finish(done: Evaluation, table: Any, as_json: bool, controls: Controls | None = None) -> None:
    """Prints a finished evaluation, from rank 0 alone; failed samples are named and make the exit code 1."""
    if is_silent():
        return
    if as_json:
        found = {} if controls is None else {"controls": controls.to_dict()}
        print_json({**done.metrics, "run_folder": str(done.folder), **found})
    else:
        from lvlm_attn.evals.core.tables import filled, show

        show(table)
        if controls is not None:
            say("")
            show(controls.table())
            say(filled(controls.sentences()))
        say(f"Written to {done.folder}")
    tell_same_answer([str(line.get("raw_text") or "") for line in done.lines if not line.get("error")])
    failed = [line for line in done.lines if line.get("error")]
    if failed:
        tell(
            f"error: {len(failed)} of {len(done.lines)} samples failed and were left out of the scores; first: "
            f"{failed[0]['error']} Fix them and run the same command again to add them."
        )
        raise typer.Exit(1)
