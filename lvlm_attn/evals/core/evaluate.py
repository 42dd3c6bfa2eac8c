"""One benchmark, one model, one set of interventions: from samples to a run folder with metrics."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn._version import __version__
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.batch_check import batch_warning, check_batch
from lvlm_attn.evals.core.benchmark import Benchmark
from lvlm_attn.evals.core.environment import describe_model, environment, plugin_hashes
from lvlm_attn.evals.core.plan import Group, batches
from lvlm_attn.evals.core.ranks import Ranks
from lvlm_attn.evals.core.records import read_records
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.core.runner import run

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
    from lvlm_attn.interventions.base import Intervention

RUNS = Path("lvlm-runs")


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes:
        metrics: what the benchmark scored.
        lines: the result line of every sample.
        folder: where both were written.
        settings: everything that decided the answers.
    """

    metrics: dict[str, Any]
    lines: list[dict[str, Any]]
    folder: Path
    settings: dict[str, Any]

    @property
    def generation(self) -> dict[str, Any]:
        """Decoding, token limit and prompt template."""
        return dict(self.settings["generation"])


def evaluate(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    interventions: Sequence[Intervention] | Intervention = (),
    *,
    out: str | Path | None = None,
    decoding: Decoding | None = None,
    batch_size: int = 8,
    seed: int = 0,
    model_name: str | None = None,
    show_progress: bool = False,
    on_note: Callable[[str], None] | None = None,
) -> Evaluation:
    """Runs a benchmark and writes a run folder; an unfinished folder with the same settings is continued.

    Equal questions about equal pictures are asked once when decoding is greedy. What the interventions did in this
    call is written to ``report.json``.

    Args:
        model: the model.
        processor: its processor.
        benchmark: what to ask and how to score, such as ``la.Pope.from_files(...)`` or ``toy_pope()``.
        interventions: what to put on the model, as ``la.VAR()`` or ``la.parse("var+vhr")``; none is the bare model.
        out: the run folder; None makes one under ``lvlm-runs`` named after the settings.
        decoding: how to generate; None is greedy with the benchmark's own length limit.
        batch_size: prompts per forward pass.
        seed: seeds sampling.
        model_name: hub id, path or ``toy``, for the run's settings; None takes it from the model.
        show_progress: draw a progress bar on standard error.
        on_note: told what the user should know, such as answers that depend on the batch; None warns.

    Under `torchrun` or `accelerate launch` the ranks share the samples; all of them return the whole.

    Raises:
        LvlmAttnError: the folder holds another run, is being written by another process or cannot be written, or a
            setting does not fit the model.
        RunInterrupted: Ctrl-C; finished samples are kept.

    Example:
        >>> model, processor = la.load("toy")  # doctest: +SKIP
        >>> done = la.evaluate(model, processor, toy_pope(count=20), la.VAR(), out="runs/var")  # doctest: +SKIP
        >>> done.metrics["accuracy"], done.folder  # doctest: +SKIP
    """
    from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer

    ranks = Ranks.of_environment()
    interventions = _checked(benchmark, interventions)
    model_name = model_name or str(getattr(model, "name_or_path", "") or type(model).__name__)
    decoding = decoding or Decoding(max_new_tokens=benchmark.max_new_tokens)
    answerer = ModelAnswerer(model, processor, interventions, decoding, benchmark.asks_yes_no)
    plugins = plugin_hashes(interventions)
    settings = {
        "benchmark": benchmark.describe(),
        "model": describe_model(model_name, model),
        "interventions": [str(item) for item in interventions],
        **({"plugins": plugins} if plugins else {}),
        "generation": answerer.describe(),
        "seed": seed if decoding.decode == "sample" else None,
        "batch_size": batch_size,
        "lvlm_attn": __version__,
    }
    samples = benchmark.samples()
    told = on_note or (lambda text: warnings.warn(text, stacklevel=3))
    share = decoding.decode == "greedy"
    with RunFolder(
        out or default_folder(settings), settings, {"scoring": benchmark.scoring()}, ranks
    ) as folder:
        with answerer:
            made = {**environment(model, processor, samples), "ranks": ranks.count}
            _note_environment(folder, made, answerer, batches(samples, batch_size, share), seed, told)
            lines = run(samples, answerer, folder, batch_size, share, seed, show_progress, told)
            if answerer.wrapped is not None and ranks.is_first:
                done = answerer.wrapped.report().to_dict()
                folder.write("report.json", done)
                folder.write("env.json", {**_before(folder), "kernels": done["kernels"]})
        metrics = benchmark.score(lines)
        if ranks.is_first:
            folder.write_metrics(metrics)
    ranks.wait()
    return Evaluation(metrics, lines, folder.path, settings)


def _note_environment(
    folder: RunFolder,
    made: dict[str, Any],
    answerer: ModelAnswerer,
    planned: Sequence[Sequence[Group]],
    seed: int,
    told: Callable[[str], None],
) -> None:
    """Writes ``env.json``; what an earlier part of the run was made with is kept where it differs."""
    before = _before(folder)
    check = before.pop("batch_check", None)
    earlier = before.pop("earlier", [])
    before.pop("kernels", None)
    if before and before != made:
        changed = [key for key in {**before, **made} if before.get(key) != made.get(key)]
        earlier = [*earlier, {key: before.get(key) for key in changed}]
    if check is None and planned and folder.ranks.is_first:
        check = check_batch(answerer, planned[0], seed)
        warning = batch_warning(check)
        if warning is not None:
            told(warning)
    if folder.ranks.is_first:
        notes = {"batch_check": check} if check else {}
        folder.write("env.json", {**made, **notes, **({"earlier": earlier} if earlier else {})})


def _before(folder: RunFolder) -> dict[str, Any]:
    path = folder.path / "env.json"
    return dict(read_records(path, "env.json").records[0].value) if path.is_file() else {}


def _checked(
    benchmark: Benchmark, interventions: Sequence[Intervention] | Intervention
) -> tuple[Intervention, ...]:
    from lvlm_attn.interventions.base import Intervention

    if not hasattr(benchmark, "samples") or not hasattr(benchmark, "score"):
        raise LvlmAttnError(
            f"{benchmark!r} is no benchmark; pass an object such as la.Pope.from_files(...) or toy_pope()."
        )
    listed = (interventions,) if isinstance(interventions, Intervention | str) else tuple(interventions)
    for item in listed:
        if not isinstance(item, Intervention):
            raise LvlmAttnError(f"{item!r} is no intervention; pass la.VAR() or la.parse('var+vhr').")
    return tuple(item for item in listed if isinstance(item, Intervention))


def default_folder(settings: dict[str, Any]) -> Path:
    """A folder under ``lvlm-runs`` named after benchmark, model and methods, ending in a hash of the settings."""
    methods = "+".join(item.partition(":")[0] for item in settings["interventions"]) or "baseline"
    name = f"{settings['benchmark']['name']}-{Path(settings['model']['id']).name}-{methods}"
    key = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return RUNS / f"{re.sub(r'[^A-Za-z0-9._+-]', '-', name)}-{key}"
