"""What the demo says around its tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.cli.demo_picture import SHADES_TOLD, SINK, chosen_heads, drawn, legend, most_moved, shares
from lvlm_attn.evals.core.tables import percent, points
from lvlm_attn.toy.prompts import pope_question

if TYPE_CHECKING:
    from lvlm_attn.evals.compare import Comparison
    from lvlm_attn.evals.study import Study
    from lvlm_attn.hooks.var import VAR
    from lvlm_attn.hooks.vhr import VHR

_LEVEL = 0.05


def introduction(model: str) -> str:
    """What the model is."""
    if model != "toy":
        return f"{Path(model).name}, asked about the toy's scenes."
    return (
        "The toy is a LLaVA of 2 million parameters, trained on emoji scenes so that it hallucinates for known causes: "
        "objects that often occur together, a habit of saying yes to common ones, and captions that add a usual "
        "companion. Its attention sinks are built in, so that VAR has something to act on."
    )


def question(asked: int, limit: int, split: str) -> str:
    """What is measured, and how the tables are to be understood."""
    return (
        f"Does it help? {limit} {split} scenes: {asked} yes/no questions (one in several splits counts once) and "
        f"{limit} captions. Brackets are 95 % intervals; fixed and broken count questions or captions that became "
        "right or wrong. PAI raises attention to the picture and subtracts what the text alone would say."
    )


def mechanism(model: Any, processor: Any, var: VAR, vhr: VHR, split: str, count: int) -> Iterator[str]:
    """Lines that show on one picture what VAR and VHR do."""
    moved = most_moved(model, processor, var, split, count)
    if moved is None:
        yield "\nVAR moves no attention in this model: it finds no sink among the patches."
        return
    asked = (
        f'{pope_question(moved.name)} ({moved.scene.id}): attention of the word "{moved.word}" of this question, '
        f"layer {moved.layer} head {moved.head}, where VAR moves most. "
        f"Darker is more; {SINK} marks sink patches, whose massive activation draws attention though nothing is there. "
        "VAR moves it to the others."
    )
    yield f"\n{textwrap.fill(asked, 79)}\n"
    yield from drawn(moved)
    yield f"objects: {legend(moved)}"
    yield SHADES_TOLD
    told = shares(moved)
    yield "; ".join(told[:2])
    yield "; ".join(told[2:])
    heads = chosen_heads(model, processor, vhr, moved.scene, moved.name)
    listed = ", ".join(f"{' and '.join(map(str, found))} of layer {layer}" for layer, found in heads)
    yield f"VHR scales by {vhr.alpha:g} the heads that change most without the picture:"
    yield textwrap.fill(f"{listed}.", 79)


def verdicts(done: Study, full: bool) -> Iterator[str]:
    """One sentence per method: what it changed and whether it helped; with all methods, only those that helped."""
    for name in list(done.pope)[1:]:
        if done.pope_tests is None or done.chair_tests is None:
            return
        answers, captions = done.pope_tests.runs[name], done.chair_tests.runs[name]
        changed = (
            f"{name} changed {_changed(done.pope_tests, name)} of {answers.questions} answers and "
            f"{captions.samples - captions.same_texts} of {captions.samples} captions"
        )
        yes_no = _judged(answers.metrics["accuracy"], "accuracy on yes/no questions", lower=False)
        if "better" in yes_no:
            yes_no += _yes_shares(answers.metrics["yes_ratio"])
        found = [
            yes_no,
            _judged(captions.metrics["chair_i"], "hallucinated objects in captions", lower=True),
        ]
        kept = [text for text in found if text]
        if kept:
            yield f"{changed}: {' and '.join(kept)}."
        elif not full:
            yield f"{changed}: no difference beyond chance on these scenes."


def _changed(compared: Comparison, name: str) -> int:
    """How many distinct questions have another answer."""
    before = {line["sample_id"]: line["raw_text"] for line in compared.reference.lines}
    lines = compared.runs[name].run.lines
    return len(
        {compared.tally.question(line) for line in lines if before.get(line["sample_id"]) != line["raw_text"]}
    )


def _yes_shares(change: Any) -> str:
    """What could explain a gain: the share of yes, where it moved."""
    if percent(change.before) == percent(change.after):
        return ""
    return (
        f" (it says yes to {percent(change.after)} %, not {percent(change.before)} %: that alone can do it; "
        "--controls tells)"
    )


def _judged(change: Any, what: str, lower: bool) -> str:
    """Better or worse beyond chance, corrected over the methods compared; empty if neither."""
    if change.p_holm >= _LEVEL:
        return ""
    is_better = (change.difference < 0) == lower
    return f"{what} {'better' if is_better else 'worse'} by {points(change.difference)[1:]} points"
