"""Several methods on the same POPE questions and captions, each compared with the first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.benchmark import Chair
from lvlm_attn.evals.core.compare import compare_chair, compare_pope
from lvlm_attn.evals.core.evaluate import Evaluation, evaluate
from lvlm_attn.evals.core.report import (
    Table,
    chair_table,
    comparison_table,
    difference_cells,
    p_value,
    percent,
    pope_table,
)
from lvlm_attn.evals.core.stats import holm
from lvlm_attn.evals.pope.benchmark import Pope
from lvlm_attn.hooks.parsing import parse


@dataclass(frozen=True)
class Study:
    """Finished runs of several methods.

    Attributes:
        pope: the POPE run of each method; the first is what the others are compared with.
        chair: the CHAIR run of each method.
        pope_tests: the comparison of each further method, `p_holm` added.
        chair_tests: likewise for captions.
    """

    pope: Mapping[str, Evaluation]
    chair: Mapping[str, Evaluation]
    pope_tests: Mapping[str, Mapping[str, Any]]
    chair_tests: Mapping[str, Mapping[str, Any]]

    def tables(self, where: str) -> list[Table]:
        """The four tables; `where` names model, data and decoding in their titles."""
        first = next(iter(self.pope))
        return [
            pope_table({name: done.metrics for name, done in self.pope.items()}, f"POPE (%): {where}"),
            chair_table({name: done.metrics for name, done in self.chair.items()}, f"CHAIR (%): {where}"),
            comparison_table(
                self.pope_tests, f"POPE accuracy against the {first}, in points, each question once"
            ),
            comparison_table(
                self.chair_tests, f"Captions without hallucination against the {first}, in points"
            ),
        ]

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
            cells += [percent(done.metrics["mean"]["yes_ratio"]), *_difference(self.pope_tests.get(name))]
            cells += [percent(chair[key]) for key in ("chair_s", "chair_i", "recall")]
            rows.append((name, *cells, f"{chair['len']:.1f}", *_difference(self.chair_tests.get(name))))
        return Table(title, columns, tuple(rows))


def study(
    methods: Mapping[str, str],
    pope: Pope,
    chair: Chair,
    model_name: str,
    model: Any,
    processor: Any,
    out: Path,
    *,
    batch_size: int = 16,
    caption_tokens: int = 64,
    show_progress: bool = False,
    on_done: Callable[[str, str, float], None] | None = None,
) -> Study:
    """Runs every method on both benchmarks, greedily, and compares it with the first.

    Args:
        methods: what to run by name, as written for `lvlm_attn.parse`; the first is the reference.
        pope: the yes/no questions.
        chair: the pictures to describe.
        model_name: for the settings of the runs.
        model: the model.
        processor: its processor.
        out: folder of the run folders; what is finished there is not run again.
        batch_size: prompts per forward pass.
        caption_tokens: length limit of captions.
        show_progress: draw progress bars on standard error.
        on_done: told benchmark, method and seconds after every run.

    Raises:
        LvlmAttnError: no methods, or one that cannot be read or run.
    """
    from lvlm_attn.evals.core.answerer import Decoding

    if not methods:
        raise LvlmAttnError("A study needs at least one method; name some, as in {'baseline': 'none'}.")
    parsed = {name: parse(text) for name, text in methods.items()}
    done: dict[str, dict[str, Evaluation]] = {pope.name: {}, chair.name: {}}
    for name, interventions in parsed.items():
        for benchmark, tokens in ((pope, pope.max_new_tokens), (chair, caption_tokens)):
            began = time.perf_counter()
            done[benchmark.name][name] = evaluate(
                benchmark,
                model_name,
                model,
                processor,
                interventions,
                Decoding(max_new_tokens=tokens),
                out / benchmark.name / name.lower(),
                batch_size,
                show_progress=show_progress,
            )
            if on_done is not None:
                on_done(benchmark.name, name, time.perf_counter() - began)
    reference = next(iter(methods))
    answers = {name: pope.pairs(run.lines)[0] for name, run in done[pope.name].items()}
    captions = {name: chair.captions(run.lines) for name, run in done[chair.name].items()}
    others = [name for name in methods if name != reference]
    return Study(
        done[pope.name],
        done[chair.name],
        _adjusted({name: compare_pope(answers[reference], answers[name]) for name in others}),
        _adjusted({name: compare_chair(captions[reference], captions[name], chair.truth) for name in others}),
    )


def _adjusted(tests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds Holm's correction over all comparisons."""
    for test, adjusted in zip(
        tests.values(), holm([item["mcnemar_p"] for item in tests.values()]), strict=True
    ):
        test["p_holm"] = adjusted
    return tests


def _difference(test: Mapping[str, Any] | None) -> tuple[str, str]:
    if test is None:
        return "", ""
    points, interval = difference_cells(test)
    return f"{points} ({interval})", p_value(test["p_holm"])
