"""`lvlm-attn eval score`: score answers that exist already, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli.chair import Captions, Instances, ground_truth_of
from lvlm_attn.cli.common import Json, print_json, say, tell, tell_same_answer

if TYPE_CHECKING:
    from lvlm_attn.evals.pope.data import PopeData
    from lvlm_attn.evals.pope.relabel import Relabelled

app = typer.Typer(no_args_is_help=True, help="Score answers that exist already; needs no model.")

Answers = Annotated[
    list[Path], typer.Option("--answers", help="File with answers; repeat for several runs or splits.")
]
AnswerField = Annotated[
    str | None,
    typer.Option("--answer-field", help="The field with the model's answers.", show_default=False),
]


# Long because every option of the command is a parameter.
@app.command("pope")
def pope(
    answers: Answers,
    questions: Annotated[
        list[Path], typer.Option("--questions", help="POPE question file; repeat for several.")
    ],
    parser: Annotated[
        str, typer.Option("--parser", help="strict, official, opera, vcd, lmms or vlmeval.")
    ] = "strict",
    answer_field: AnswerField = None,
    relabel: Annotated[
        list[Path] | None,
        typer.Option(
            "--relabel",
            help="Question file with other labels for the same questions, such as RePOPE's; repeat for several.",
            show_default=False,
        ),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Score the answered questions only.")] = False,
    as_json: Json = False,
) -> None:
    """Score POPE answers of any tool: JSON, CSV, xlsx, parquet, lmms-eval's logs, or a samples.jsonl of ours.

    Files whose names differ in the split alone are one run; every other file is a row of its own.

    Example: lvlm-attn eval score pope --answers answers.jsonl --questions coco_pope_random.json --json
    """
    from lvlm_attn.evals.core.parsers import get_parser
    from lvlm_attn.evals.core.report import pope_table, show
    from lvlm_attn.evals.pope.data import load_questions
    from lvlm_attn.evals.pope.runs import match_runs
    from lvlm_attn.evals.pope.score import score_pope

    get_parser(parser)
    data = load_questions(questions)
    asked, relabelled = _relabelled(data, relabel)
    runs = match_runs(answers, asked, partial, answer_field)
    results = {name: score_pope(run.answered, parser, run.failed) for name, run in runs.items()}
    for name, run in runs.items():
        results[name]["unasked"] = run.unasked
        results[name]["answer_files"] = [
            {
                "name": file.path.name,
                "answer_field": file.choice.field,
                "gold_fields": file.choice.gold,
                "matched_by": by,
            }
            for file, by in run.files
        ]
        results[name]["files"] = [
            {"name": info.path, "sha256": info.sha256, "rows": info.rows} for info in data.files
        ]
        if relabelled is not None:
            results[name]["relabel"] = {"dropped": relabelled.dropped, "changed": relabelled.changed}
    remarks = [*(text for info in data.files for text in info.warnings)]
    if relabelled is not None:
        remarks.append(
            f"relabelled: {relabelled.changed} labels changed, {relabelled.dropped} questions dropped."
        )
    for remark in (*remarks, *(text for run in runs.values() for text in run.notes)):
        tell(f"note: {remark}")
    if as_json:
        print_results(results, "pope")
        return
    show(pope_table(results, f"POPE, parser {parser}, {made_with(answers)} (%)"))
    for name, result in results.items():
        told = f"{name}: " if len(results) > 1 else ""
        _comment(result, told)
        tell_same_answer([item.text for item in runs[name].answered], told)


def _relabelled(data: PopeData, files: list[Path] | None) -> tuple[Any, Relabelled | None]:
    if not files:
        return data.questions, None
    from lvlm_attn.evals.pope.data import load_questions
    from lvlm_attn.evals.pope.relabel import relabel

    done = relabel(data.questions, load_questions(files).questions)
    return done.questions, done


def _count(number: int, noun: str, verb: str) -> str:
    return f"1 {noun} {verb}s" if number == 1 else f"{number} {noun}s {verb}"


def _comment(result: Mapping[str, Any], run: str) -> None:
    """What the table does not say about a run's answers."""
    if result["unreadable"]:
        say(f"{run}{_count(result['unreadable'], 'answer', 'hold')} neither yes nor no as a verdict.")
    if result["reasoning"]:
        skipped = "skipped" if result["parser"] == "strict" else "read with the rest"
        unfinished = (
            f" ({result['unfinished_reasoning']} unfinished)" if result["unfinished_reasoning"] else ""
        )
        say(
            f"{run}{_count(result['reasoning'], 'answer', 'hold')} reasoning{unfinished}, which was {skipped}."
        )
    if result["echoed"]:
        skipped = "skipped" if result["parser"] == "strict" else "read with the rest"
        count = _count(result["echoed"], "answer", "offer")
        say(f"{run}{count} both yes and no, as an echoed instruction does; that was {skipped}.")
    if result["failed"]:
        tell(
            f"note: {run}{result['failed']} samples failed when the answers were generated and are left out."
        )
    fields = [file for file in result["answer_files"] if file["answer_field"] == "answer"]
    if fields and result["accuracy"] == 1 and result["n"] > 2:
        tell(f"note: {run}every answer is right; is 'answer' in {fields[0]['name']} the gold answer?")


def print_results(results: Mapping[str, dict[str, Any]], benchmark: str) -> None:
    """One object: the result of a single run, or all of them by name."""
    if len(results) == 1:
        print_json(*results.values())
    else:
        print_json({"benchmark": benchmark, "runs": results})


def made_with(answers: Sequence[Path]) -> str:
    """How answers were generated, as far as a `config.json` beside them tells."""
    from lvlm_attn.evals.core.finished import generation_of
    from lvlm_attn.evals.core.report import limits

    found = {path: generation_of(path) for path in answers}
    told = {
        path: limits(item) if item else "decoding and token limit not known" for path, item in found.items()
    }
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{path.parent.name or path.name}: {text}" for path, text in told.items())


@app.command("chair")
def chair(
    answers: Answers,
    truth: Annotated[
        list[Path] | None,
        typer.Option(
            "--ground-truth",
            help="JSON lines {image_id, objects}, or COCO's files; repeat for several.",
            show_default=False,
        ),
    ] = None,
    instances: Instances = None,
    captions: Captions = None,
    mode: Annotated[str, typer.Option("--mode", help="strict, pattern or wordnet.")] = "strict",
    answer_field: AnswerField = None,
    drop_incomplete_sentence: Annotated[
        bool,
        typer.Option(
            "--drop-unfinished-sentence",
            "--drop-incomplete-sentence",
            help="Cut captions after their last full stop.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Score captions of any tool; each file is a row of its own.

    Example: lvlm-attn eval score chair --answers captions.jsonl --ground-truth objects.jsonl
    """
    from lvlm_attn.evals.chair.data import load_caption_file
    from lvlm_attn.evals.chair.score import score_chair
    from lvlm_attn.evals.core.finished import names_of
    from lvlm_attn.evals.core.report import chair_table, show

    known = ground_truth_of(truth, instances, captions, mode)
    files = [load_caption_file(path, answer_field) for path in answers]
    names = names_of([path.parent if path.stem == "samples" else path.with_suffix("") for path in answers])
    results: dict[str, dict[str, Any]] = {}
    for name, file in zip(names, files, strict=True):
        results[name] = score_chair(file.captions, known.objects, mode, drop_incomplete_sentence, file.failed)
        results[name]["answer_field"] = file.choice.field
        results[name]["ground_truth_sha256"] = known.sha256
        results[name]["unknown_objects"] = list(known.unknown)
    for remark in (*known.notes, *(text for file in files for text in file.notes)):
        tell(f"note: {remark}")
    if known.unknown:
        tell(
            f"note: {len(known.unknown)} object names are outside CHAIR's vocabulary (first: {known.unknown[0]})."
        )
    if as_json:
        print_results(results, "chair")
        return
    show(chair_table(results, f"CHAIR, mode {mode}, {made_with(answers)} (%)"))
    for name, result in results.items():
        run = f"{name}: " if len(results) > 1 else ""
        if result["reasoning"] and mode == "strict":
            say(f"{run}{_count(result['reasoning'], 'caption', 'hold')} reasoning, which was skipped.")
        top = ", ".join(f"{node} {count}" for node, count in result["top_hallucinated"].items())
        if top:
            say(f"{run}Most hallucinated: {top}")
