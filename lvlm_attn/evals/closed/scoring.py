"""Scores files of answers: those of other tools with a copy of the benchmark, those of our runs by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark, parts_of, score_lines
from lvlm_attn.evals.closed.results import lines_of
from lvlm_attn.evals.closed.rules import require_rule
from lvlm_attn.evals.closed.spec import Closed
from lvlm_attn.evals.core.finished import names_of
from lvlm_attn.evals.core.records import latest_by_id, read_records


@dataclass
class ScoredFiles:
    """Results of answer files.

    Attributes:
        results: by the name of the run.
        notes: what a user should know about how the files were read.
    """

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score_files(
    spec: Closed,
    paths: Sequence[Path],
    benchmark: ClosedBenchmark | None,
    parser: str = "strict",
    partial: bool = False,
    answer_field: str | None = None,
) -> ScoredFiles:
    """Scores answer files, each a run of its own.

    Args:
        spec: the benchmark.
        paths: the files; our own `samples.jsonl`, or the run folder that holds it, need no copy of the benchmark.
        benchmark: the questions; None for runs of our own.
        parser: the rule that reads an answer.
        partial: score the answered questions only.
        answer_field: the field with the model's answers, where a file has two that could be.

    Raises:
        LvlmAttnError: a file cannot be read, does not answer the questions, or needs them and has none.
    """
    found = ScoredFiles()
    files = [path / "samples.jsonl" if (path / "samples.jsonl").is_file() else path for path in paths]
    for name, path in zip(names_of([_place(path) for path in files]), files, strict=True):
        if benchmark is None:
            lines = own_lines(spec, path)
            require_rule(parser, any(line.get("options") for line in lines))
            scoring = {"parser": parser, "parts": parts_of(spec, [str(line["category"]) for line in lines])}
            found.results[name] = score_lines(spec, lines, scoring)
            continue
        scored = lines_of(benchmark, path, partial, answer_field)
        result = score_lines(spec, scored.lines, benchmark.scoring())
        found.results[name] = {**result, "failed": scored.failed, "unasked": scored.unasked}
        found.notes += scored.notes
    return found


def _place(path: Path) -> Path:
    """What a run is named after."""
    return path.parent if path.stem == "samples" else path if path.is_dir() else path.with_suffix("")


def own_lines(spec: Closed, path: Path) -> list[Mapping[str, Any]]:
    """The lines of a run of our own.

    Raises:
        LvlmAttnError: they were written by something else and do not tell the right answers.
    """
    remedy = f"pass --data FOLDER with your copy of {spec.title}"
    if path.is_dir():
        raise LvlmAttnError(f"{path} is no run folder of ours; {remedy} to score it.")
    lines: list[Mapping[str, Any]] = [
        record.value for record in latest_by_id(read_records(path, "answer file").records)
    ]
    if not all({"sample_id", "label", "category", "raw_text"} <= line.keys() for line in lines):
        raise LvlmAttnError(f"{path} does not tell the right answers; {remedy}.")
    return lines
