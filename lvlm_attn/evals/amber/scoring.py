"""Scores files of descriptions: those of other tools with a copy of AMBER, those of our runs by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.amber.benchmark import AmberCaptions, score_lines
from lvlm_attn.evals.core.finished import names_of, read_run
from lvlm_attn.evals.core.joining import join, read_answers


def score_files(
    paths: Sequence[Path], data: Path | None, partial: bool = False, answer_field: str | None = None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Scores files of descriptions, each a run of its own.

    Args:
        paths: the files; run folders of our own, or the `samples.jsonl` in them, need no copy of AMBER.
        data: the folder with the copy.
        partial: score the described pictures only.
        answer_field: the field with the descriptions, where a file has two that could be.

    Returns:
        Results by the name of the run, and what a user should know about how the files were read.

    Raises:
        LvlmAttnError: a file cannot be read, does not describe the pictures, or needs a copy and has none.
    """
    benchmark = None if data is None else AmberCaptions.from_folder(data)
    results: dict[str, dict[str, Any]] = {}
    notes: list[str] = []
    files = [path / "samples.jsonl" if (path / "samples.jsonl").is_file() else path for path in paths]
    places = [path.parent if path.stem == "samples" else path.with_suffix("") for path in files]
    for name, path in zip(names_of(places), files, strict=True):
        if benchmark is None:
            results[name] = _own(path)
            continue
        answers = read_answers(path, answer_field, captions=True)
        joined = join(answers, benchmark.pictures, partial)
        texts = joined.texts
        lines: list[Mapping[str, Any]] = [
            {
                "sample_id": item.sample_id,
                "image": item.image,
                **item.fields(),
                "raw_text": texts[item.sample_id],
            }
            for item in benchmark.pictures
            if item.sample_id in texts
        ]
        result = score_lines(lines, benchmark.scoring())
        results[name] = {**result, "failed": joined.failed, "unasked": joined.unasked}
        notes.append(answers.choice.sentence(path.name))
    return results, notes


def _own(path: Path) -> dict[str, Any]:
    if not (path.parent / "config.json").is_file():
        raise LvlmAttnError(
            f"{path} is no run of our own; pass --data FOLDER with your copy of AMBER to score it."
        )
    run = read_run(path.parent)
    return {**score_lines(run.lines, run.scoring), "failed": run.failed}
