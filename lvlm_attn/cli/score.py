"""`lvlm-attn eval score`: score answers that exist already, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.cli.common import Json, print_json, say, tell

app = typer.Typer(no_args_is_help=True, help="Score answers that exist already; needs no model.")

Answers = Annotated[list[Path], typer.Option("--answers", help="File with answers; repeat for several.")]
More = Annotated[list[Path] | None, typer.Argument(hidden=True)]


@app.command("pope")
def pope(
    answers: Answers,
    questions: Annotated[
        list[Path], typer.Option("--questions", help="POPE question file; repeat for several.")
    ],
    parser: Annotated[
        str, typer.Option("--parser", help="strict, official, opera, vcd, lmms or vlmeval.")
    ] = "strict",
    partial: Annotated[bool, typer.Option("--partial", help="Score the answered questions only.")] = False,
    as_json: Json = False,
) -> None:
    """Score POPE answers: {question, answer}, {question_id, text}, or a samples.jsonl of ours.

    Example: lvlm-attn eval score pope --answers answers.jsonl --questions coco_pope_random.json --json
    """
    from lvlm_attn.evals.core.parsers import get_parser
    from lvlm_attn.evals.core.report import pope_table, show
    from lvlm_attn.evals.pope.answers import match_answers
    from lvlm_attn.evals.pope.data import load_questions
    from lvlm_attn.evals.pope.score import score_pope

    get_parser(parser)
    data = load_questions(questions)
    answered, failed = match_answers(answers, data.questions, partial)
    result = score_pope(answered, parser, failed)
    result["files"] = [{"name": info.path, "sha256": info.sha256, "rows": info.rows} for info in data.files]
    for info in data.files:
        for warning in info.warnings:
            tell(f"note: {warning}")
    if as_json:
        print_json(result)
        return
    show(pope_table({answers[0].stem: result}, f"POPE, parser {parser} (%)"))
    if result["unreadable"]:
        say(f"{result['unreadable']} answers hold neither yes nor no as a word.")
    if failed:
        tell(f"note: {failed} samples failed when the answers were generated and are left out.")


@app.command("chair")
def chair(
    answers: Answers,
    ground_truth: Annotated[Path, typer.Option("--ground-truth", help="JSON lines {image_id, objects}.")],
    mode: Annotated[str, typer.Option("--mode", help="strict, pattern or wordnet.")] = "strict",
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
    """Score captions: {image_id, caption}, or a samples.jsonl of ours.

    Example: lvlm-attn eval score chair --answers captions.jsonl --ground-truth objects.jsonl
    """
    from lvlm_attn.evals.chair.data import load_captions, load_ground_truth
    from lvlm_attn.evals.chair.score import score_chair
    from lvlm_attn.evals.core.report import chair_table, show

    truth = load_ground_truth(ground_truth, mode)
    captions, failed = load_captions(answers)
    result = score_chair(captions, truth.objects, mode, drop_incomplete_sentence, failed)
    if truth.unknown:
        tell(
            f"note: {len(truth.unknown)} object names are outside CHAIR's vocabulary (first: {truth.unknown[0]})."
        )
    if as_json:
        print_json({**result, "ground_truth_sha256": truth.sha256, "unknown_objects": list(truth.unknown)})
        return
    show(chair_table({answers[0].stem: result}, f"CHAIR, mode {mode} (%)"))
    top = ", ".join(f"{name} {count}" for name, count in result["top_hallucinated"].items())
    if top:
        say(f"Most hallucinated: {top}")
