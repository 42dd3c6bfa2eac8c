"""Several methods on the same POPE questions and captions, each compared with the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.benchmark import Chair
from lvlm_attn.evals.compare import Comparison, compare
from lvlm_attn.evals.core.benchmark import Benchmark
from lvlm_attn.evals.core.evaluate import Evaluation, evaluate
from lvlm_attn.evals.core.finished import Run, read_run
from lvlm_attn.evals.core.report import chair_table, limits, pope_table
from lvlm_attn.evals.core.tables import Table, p_value, percent
from lvlm_attn.evals.pope.benchmark import Pope
from lvlm_attn.evals.wording import once_table, points_of
from lvlm_attn.interventions.base import Intervention


@dataclass(frozen=True)
class Study:
    """Finished runs of several methods.

    Attributes:
        pope: the POPE run of each method; the first is what the others are compared with.
        chair: the CHAIR run of each method.
        pope_tests: the POPE runs compared with the first; None where there is one method only.
        chair_tests: likewise for captions.
    """

    pope: Mapping[str, Evaluation]
    chair: Mapping[str, Evaluation]
    pope_tests: Comparison | None
    chair_tests: Comparison | None

    def tables(self, where: str) -> list[Table]:
        """The four tables; `where` names model and data in their titles, which also say the token limits."""
        first = next(iter(self.pope))
        pope, chair = (
            {name: done.metrics for name, done in runs.items()} for runs in (self.pope, self.chair)
        )
        tables = [
            pope_table(pope, f"POPE (%): {where}, {limits(self.pope[first].generation)}"),
            chair_table(chair, f"CHAIR (%): {where}, {limits(self.chair[first].generation)}"),
        ]
        if self.pope_tests is not None:
            title = (
                f"POPE accuracy against the {first}, in points, each question once, "
                f"{limits(self.pope[first].generation)}"
            )
            tables.append(once_table(self.pope_tests, title))
        if self.chair_tests is not None:
            title = (
                f"Captions without hallucination against the {first}, in points, "
                f"{limits(self.chair[first].generation)}"
            )
            tables.append(once_table(self.chair_tests, title))
        return tables

    def overview(self, title: str) -> Table:
        """One row per method: the main scores, their difference to the first method, yes ratio and length."""
        columns = (
            "method",
            "random",
            "popular",
            "adversarial",
            "yes",
            "accuracy against the first",
            "p (Holm)",
            "CHAIR_s",
            "CHAIR_i",
            "recall",
            "tokens",
            "clean captions against the first",
            "p (Holm) ",
        )
        rows = []
        for name, done in self.pope.items():
            parts, chair = done.metrics["per_category"], self.chair[name].metrics
            cells = [percent(parts[key]["accuracy"]) for key in ("random", "popular", "adversarial")]
            cells += [percent(done.metrics["mean"]["yes_ratio"]), *_difference(self.pope_tests, name)]
            cells += [percent(chair[key]) for key in ("chair_s", "chair_i", "recall")]
            rows.append((name, *cells, f"{chair['len']:.1f}", *_difference(self.chair_tests, name)))
        return Table(title, columns, tuple(rows))


def study(
    methods: Mapping[str, Sequence[Intervention]],
    pope: Pope,
    chair: Chair,
    model_name: str,
    model: Any,
    processor: Any,
    out: Path,
    *,
    batch_size: int = 16,
    show_progress: bool = False,
    on_done: Callable[[str, str, float], None] | None = None,
) -> Study:
    """Runs every method on both benchmarks, greedily, and compares it with the first.

    Args:
        methods: the interventions of each method by its name; the first is the reference.
        pope: the yes/no questions.
        chair: the pictures to describe.
        model_name: for the settings of the runs.
        model: the model.
        processor: its processor.
        out: folder of the run folders; what is finished there is not run again.
        batch_size: prompts per forward pass.
        show_progress: draw progress bars on standard error.
        on_done: told benchmark, method and seconds after every run.

    Raises:
        LvlmAttnError: no methods, or one that cannot be run.
    """
    if not methods:
        raise LvlmAttnError("A study needs at least one method; name some, as in {'baseline': ()}.")
    done: dict[str, dict[str, Evaluation]] = {pope.name: {}, chair.name: {}}
    for name, interventions in methods.items():
        benchmarks: tuple[Benchmark, ...] = (pope, chair)
        for benchmark in benchmarks:
            began = time.perf_counter()
            done[benchmark.name][name] = evaluate(
                model,
                processor,
                benchmark,
                interventions,
                out=out / benchmark.name / name.lower(),
                batch_size=batch_size,
                model_name=model_name,
                show_progress=show_progress,
            )
            if on_done is not None:
                on_done(benchmark.name, name, time.perf_counter() - began)
    runs = [
        [read_run(item.folder, name) for name, item in done[benchmark.name].items()]
        for benchmark in (pope, chair)
    ]
    return Study(done[pope.name], done[chair.name], *map(_compared, runs))


def _compared(runs: Sequence[Run]) -> Comparison | None:
    return compare(runs, force=True) if len(runs) > 1 else None


def _difference(comparison: Comparison | None, name: str) -> tuple[str, str]:
    pairing = None if comparison is None else comparison.runs.get(name)
    if pairing is None:
        return "", ""
    points, interval = points_of(pairing.once)
    return f"{points} ({interval})", p_value(pairing.once.p_holm)
