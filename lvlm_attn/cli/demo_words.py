"""What the demo says around its tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.cli.demo_picture import SHADES_TOLD, SINK, chosen_heads, drawn, legend, most_moved, shares
from lvlm_attn.evals.core.tables import percent, points
from lvlm_attn.toy.prompts import pope_question, with_article

if TYPE_CHECKING:
    from lvlm_attn.evals.compare import Comparison
    from lvlm_attn.evals.study import Study
    from lvlm_attn.hooks.var import VAR
    from lvlm_attn.hooks.vhr import VHR

_LEVEL = 0.05


def filled(text: str) -> str:
    """Prose in lines of 79 characters; names, which have hyphens, are not broken."""
    return textwrap.fill(text, 79, break_long_words=False, break_on_hyphens=False)


def introduction(model: str) -> str:
    """What the model is."""
    if model != "toy":
        return f"{Path(model).name}, asked about the toy's scenes."
    return (
        "The toy is a LLaVA of 2 million parameters, trained on emoji scenes so that it hallucinates for known causes: "
        "objects that often occur together, a habit of saying yes to common ones, and captions that add a usual "
        "companion. Its attention sinks are built in, so that VAR has something to act on."
    )


def question(asked: int, shown: int, limit: int, split: str) -> str:
    """What is measured, and how the tables are to be understood.

    Args:
        asked: How many distinct yes/no questions.
        shown: How many scenes they are about.
        limit: How many scenes there are.
        split: Which split they are of.
    """
    return (
        f"Does it help? POPE asks whether an object is there: {asked} yes/no questions on {shown} of {limit} {split} "
        "scenes (the others have too few objects). Half of each of its three splits should be yes; false yes: share "
        "of the other half. Fixed, broken: a question in several splits counts once. CHAIR reads "
        f"{limit} captions: CHAIR_i is the share of named objects that are not there, CHAIR_s of captions with one "
        "(fixed and broken count these), recall of objects there that are named. Brackets: 95 % intervals; "
        "in words below: beyond chance (Holm, 5 %)."
    )


def running(settings: Iterable[str], seconds: float | None) -> str:
    """Which settings are run, and how long that takes where it is known."""
    used = ", ".join(f"`{text}`" for text in settings if text != "none")
    lasting = "" if seconds is None else f" Two free CPU cores take about {_lasting(seconds)}."
    return (
        f"Settings, chosen on dev scenes: {used}. PAI raises attention to the picture and subtracts what the text "
        f"alone would say.{lasting}"
    )


def _lasting(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def mechanism(model: Any, processor: Any, var: VAR, vhr: VHR, split: str, count: int) -> Iterator[str]:
    """Lines that show on one picture what VAR and VHR do."""
    moved = most_moved(model, processor, var, split, count)
    if moved is None:
        yield "\nVAR moves no attention in this model: it finds no sink among the patches."
        return
    text = pope_question(moved.name)
    before = f' (before "{moved.name}" is read)' if text.find(moved.word) < text.find(moved.name) else ""
    asked = (
        f'{text} ({moved.scene.id}): attention of its word "{moved.word}"{before}, layer {moved.layer} head '
        f"{moved.head}, where VAR moves most: from sinks (the first token and patches {SINK}, which draw attention "
        "though nothing is there) to the other patches."
    )
    yield f"\n{filled(asked)}\n"
    yield from drawn(moved)
    yield f"objects: {legend(moved)}"
    yield SHADES_TOLD
    yield ", ".join(shares(moved))
    bare, changed = moved.answers
    yield f'There is {with_article(moved.name)}. The answer is "{bare}" before and "{changed}" after VAR.'
    heads = chosen_heads(model, processor, vhr, moved.scene, moved.name)
    listed = ", ".join(f"{' and '.join(map(str, found))} of layer {layer}" for layer, found in heads)
    yield f"VHR multiplies by {vhr.alpha:g} the heads that change most without the picture:"
    yield filled(f"{listed}.")


def verdicts(done: Study, full: bool) -> Iterator[str]:
    """One sentence per method: whether it helped and what it changed; with all methods, only those that differ."""
    if done.pope_tests is None or done.chair_tests is None:
        return
    other_yes, told = [], 0
    for name in list(done.pope)[1:]:
        answers, captions = done.pope_tests.runs[name], done.chair_tests.runs[name]
        measured = (
            ("accuracy", answers.metrics["accuracy"], False),
            ("CHAIR_i", captions.metrics["chair_i"], True),
            ("recall of captions", captions.metrics["recall"], False),
        )
        effects = [_effect(change, is_loss) for _, change, is_loss in measured]
        if full and not any(effects):
            continue
        told += 1
        counts = (
            f"{_changed(done.pope_tests, name)} of {answers.questions} answers and "
            f"{captions.samples - captions.same_texts} of {captions.samples} captions changed"
        )
        found = ", ".join(
            f"{what} {'better' if effect > 0 else 'worse'} by {points(change.difference)[1:]} points"
            for effect, (what, change, _) in zip(effects, measured, strict=True)
            if effect
        )
        yield f"{name} {_summary(effects)}: {counts}{'; ' if found else ''}{found}."
        yes = answers.metrics["yes_ratio"]
        if effects[0] > 0 and percent(yes.before) != percent(yes.after):
            other_yes.append((name, yes))
    if full and not told:
        yield "No method makes a difference beyond chance."
    if other_yes:
        yield _yes_shares(other_yes)


def _changed(compared: Comparison, name: str) -> int:
    """How many distinct questions have another answer."""
    before = {line["sample_id"]: line["raw_text"] for line in compared.reference.lines}
    lines = compared.runs[name].run.lines
    return len(
        {compared.tally.question(line) for line in lines if before.get(line["sample_id"]) != line["raw_text"]}
    )


def _yes_shares(found: Sequence[tuple[str, Any]]) -> str:
    """What could explain gains: the share of yes, where it moved."""
    listed = ", ".join(f"{name} {percent(yes.after)} %" for name, yes in found)
    return (
        f"The better answers have another share of yes ({listed}; bare model {percent(found[0][1].before)} %), which "
        "alone may explain them: see --controls below."
    )


def _effect(change: Any, is_loss: bool) -> int:
    """1 where it helped beyond chance, corrected over the methods compared; -1 where it did harm; else 0."""
    if change.p_holm >= _LEVEL:
        return 0
    return 1 if (change.difference < 0) == is_loss else -1


def _summary(effects: Sequence[int]) -> str:
    found = (["may help"] if 1 in effects else []) + (["does harm"] if -1 in effects else [])
    return " and ".join(found) or "makes no difference beyond chance"
