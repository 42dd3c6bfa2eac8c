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
from lvlm_attn.evals.core.benchmark import Benchmark, asks_letters
from lvlm_attn.evals.core.environment import describe_model, environment, plugin_hashes
from lvlm_attn.evals.core.finished import SEED_FOLDERS
from lvlm_attn.evals.core.image_tokens import METRIC, remove_image_tokens, removed_sentence
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.plan import batches
from lvlm_attn.evals.core.ranks import Ranks
from lvlm_attn.evals.core.run_folder import RunFolder, saying_what_failed
from lvlm_attn.evals.core.run_notes import note_environment, note_report
from lvlm_attn.evals.core.runner import RunInterrupted, run
from lvlm_attn.evals.core.spread import mean_and_spread

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.interventions.base import Intervention

RUNS = Path("lvlm-runs")


@dataclass(frozen=True)
class Evaluation:
    """A finished run.

    Attributes:
        metrics: what the benchmark scored; with several seeds their means, with standard deviations in ``spread``.
        lines: the result line of every sample, with several seeds those of one after those of the other.
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


# Long because most of it is its parameters and what they mean.
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
    seeds: int = 1,
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
        seeds: how many sampling runs, with the seeds ``seed``, ``seed + 1`` and so on; above 1 the folder holds a run
            folder ``seed-0`` and so on for each, and can be compared and reported like a single one.
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
    from lvlm_attn.evals.core.answerer import Decoding

    asked = _Asked(
        model, processor, benchmark, _checked(benchmark, interventions),
        decoding or Decoding(max_new_tokens=benchmark.max_new_tokens), batch_size,
        model_name or str(getattr(model, "name_or_path", "") or type(model).__name__),
        show_progress, on_note or (lambda text: warnings.warn(text, stacklevel=4)),
    )  # fmt: skip
    if seeds < 1:
        raise LvlmAttnError(f"seeds is {seeds}; it must be at least 1.")
    if seeds == 1:
        return asked.run(out, seed)
    if asked.decoding.decode != "sample":
        raise LvlmAttnError(
            f"{seeds} seeds of {asked.decoding.decode} decoding give the same answers; sample "
            "(--decode sample), or leave out --seeds."
        )
    return asked.run_seeds(out, [seed + i for i in range(seeds)])


@dataclass(frozen=True)
class _Asked:
    """One call of `evaluate`, but for its seeds."""

    model: Any
    processor: Any
    benchmark: Benchmark
    interventions: tuple[Intervention, ...]
    decoding: Decoding
    batch_size: int
    model_name: str
    show_progress: bool
    told: Callable[[str], None]

    def run(self, out: str | Path | None, seed: int) -> Evaluation:
        """One run folder."""
        try:
            return self._run(out, seed)
        except RunInterrupted:
            raise
        except KeyboardInterrupt:  # while batches are planned or checked, or scores written
            raise RunInterrupted(
                "stopped; what was answered before is kept: run the same command again to go on."
            ) from None

    def _run(self, out: str | Path | None, seed: int) -> Evaluation:
        from lvlm_attn.evals.core.answerer import ModelAnswerer

        ranks, benchmark = Ranks.of_environment(), self.benchmark
        answerer = ModelAnswerer(
            self.model, self.processor, self.interventions, self.decoding,
            asks_yes_no=benchmark.asks_yes_no, asks_letters=asks_letters(benchmark),
        )  # fmt: skip
        settings = self._settings(answerer.describe(), seed)
        samples, removed = remove_image_tokens(benchmark.samples(), self.processor)
        share = self.decoding.decode == "greedy"
        place = out or default_folder(settings)
        limit = getattr(benchmark, "limit", None)  # no setting: a run may go on with a larger one
        notes = {"scoring": benchmark.scoring(), **({} if limit is None else {"limit": limit})}
        with RunFolder(place, settings, notes, ranks) as folder:
            with answerer:
                made = {**environment(self.model, self.processor, samples), "ranks": ranks.count}
                if noted := removed_sentence({METRIC: removed}):
                    self.told(f"{noted}.")
                planned = batches(samples, self.batch_size, share)
                note_environment(folder, made, answerer, planned, seed, self.told)
                is_finished = folder.answered() >= {sample.sample_id for sample in samples}
                lines = run(
                    samples, answerer, folder, self.batch_size, share, seed, self.show_progress, self.told
                )
                if not is_finished:
                    note_report(folder, answerer)
            metrics = {**benchmark.score(lines), **({METRIC: removed} if removed else {})}
            if ranks.is_first:
                folder.write_metrics(metrics)
        ranks.wait()
        return Evaluation(metrics, lines, folder.path, settings)

    def run_seeds(self, out: str | Path | None, seeds: Sequence[int]) -> Evaluation:
        """A folder of run folders, one per seed, with the mean of their metrics."""
        from lvlm_attn.evals.core.answerer import ModelAnswerer

        if out is None:
            answerer = ModelAnswerer(self.model, self.processor, self.interventions, self.decoding)
            out = default_folder({**self._settings(answerer.describe(), 0), "seed": None})
        place, ranks = Path(out), Ranks.of_environment()
        if (place / "config.json").exists():
            raise LvlmAttnError(
                f"{place} holds a single run; choose another --out for several seeds, nothing was changed."
            )
        done = [self.run(place / f"{SEED_FOLDERS}{seed}", seed) for seed in seeds]
        metrics = mean_and_spread([item.metrics for item in done])
        if ranks.is_first:
            with saying_what_failed(place / "metrics.json"):
                write_json(place / "metrics.json", metrics)
        ranks.wait()
        lines = [line for item in done for line in item.lines]
        return Evaluation(metrics, lines, place, {**done[0].settings, "seed": list(seeds)})

    def _settings(self, generation: dict[str, Any], seed: int) -> dict[str, Any]:
        plugins = plugin_hashes(self.interventions)
        return {
            "benchmark": self.benchmark.describe(),
            "model": describe_model(self.model_name, self.model),
            "interventions": [str(item) for item in self.interventions],
            **({"plugins": plugins} if plugins else {}),
            "generation": generation,
            "seed": seed if self.decoding.decode == "sample" else None,
            "batch_size": self.batch_size,
            "lvlm_attn": __version__,
        }


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
