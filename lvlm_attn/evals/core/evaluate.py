"""One benchmark, one model, one set of interventions: from samples to a run folder with metrics."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn._version import __version__
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.benchmark import Benchmark
from lvlm_attn.evals.core.jsonio import write_json
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.core.runner import run

if TYPE_CHECKING:
    from lvlm_attn.evals.core.answerer import Decoding
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

    interventions = _checked(benchmark, interventions)
    model_name = model_name or str(getattr(model, "name_or_path", "") or type(model).__name__)
    decoding = decoding or Decoding(max_new_tokens=benchmark.max_new_tokens)
    answerer = ModelAnswerer(model, processor, interventions, decoding, benchmark.asks_yes_no)
    settings = {
        "benchmark": benchmark.describe(),
        "model": describe_model(model_name, model),
        "interventions": [str(item) for item in interventions],
        "generation": answerer.describe(),
        "seed": seed if decoding.decode == "sample" else None,
        "batch_size": batch_size,
        "lvlm_attn": __version__,
    }
    folder = RunFolder(
        out or default_folder(settings),
        settings,
        {"scoring": benchmark.scoring(), "environment": environment(model)},
    )
    with answerer:
        lines = run(
            benchmark.samples(),
            answerer,
            folder,
            batch_size,
            share_identical=decoding.decode == "greedy",
            seed=seed,
            show_progress=show_progress,
        )
        if answerer.wrapped is not None:
            write_json(folder.path / "report.json", answerer.wrapped.report().to_dict())
    metrics = benchmark.score(lines)
    folder.write_metrics(metrics)
    return Evaluation(metrics, lines, folder.path, settings)


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


def describe_model(name: str, model: Any) -> dict[str, Any]:
    """Identity of a model: id, revision, dtype, attention backend and a fingerprint of its weights."""
    from lvlm_attn.runtime.transformers_private import attention_of, revision_of

    text_config = model.config.get_text_config()
    return {
        "id": name,
        "revision": revision_of(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": attention_of(text_config),
        "weights": fingerprint(model),
    }


def fingerprint(model: Any) -> str:
    """A hash of the first values of every parameter: tells retrained weights apart without reading all of them."""
    digest = sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()[:16].float().cpu().numpy()
        digest.update(name.encode() + values.tobytes())
    return digest.hexdigest()[:16]


def environment(model: Any) -> dict[str, Any]:
    """Versions and device, as they influence the last digits of logits."""
    versions: dict[str, str | None] = {}
    for package in ("torch", "transformers", "numpy", "pillow", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "lvlm_attn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(model.device),
        **versions,
    }
