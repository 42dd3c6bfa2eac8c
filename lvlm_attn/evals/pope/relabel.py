"""RePOPE: the same questions with checked labels, and without those that cannot be decided.

Source: Neuhaus and Hein, "RePOPE: Impact of Annotation Errors on the POPE Benchmark", 2025 (arXiv 2504.15707): of COCO
POPE's labels 9.3 % of yes and 1.7 % of no are wrong, and ambiguous questions are dropped. Its files look like POPE's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.fields import Label
from lvlm_attn.evals.core.pictures import image_key
from lvlm_attn.evals.pope.data import Question, question_key


@dataclass(frozen=True)
class Relabelled:
    """Questions with new labels.

    Attributes:
        questions: those that the new labels decide.
        dropped: how many they do not.
        changed: how many labels are others than before.
    """

    questions: tuple[Question, ...]
    dropped: int
    changed: int


def relabel(questions: Sequence[Question], labels: Sequence[Question]) -> Relabelled:
    """Takes the label of every question from another file that asks the same of the same picture.

    Questions are joined by picture and question, within the split where both tell it, never by id or place.

    Args:
        questions: POPE's questions.
        labels: the file with the labels, such as RePOPE's.

    Raises:
        LvlmAttnError: no question is in both.

    Example:
        >>> done = relabel(load_questions("coco_pope_random.json").questions, repope.questions)  # doctest: +SKIP
        >>> len(done.questions), done.dropped  # doctest: +SKIP
    """
    by_split: dict[tuple[str, str, str], Label | None] = {}
    anywhere: dict[tuple[str, str], Label | None] = {}
    for item in labels:
        key = image_key(item.image), question_key(item.text)
        by_split[item.category, *key] = item.label
        anywhere.setdefault(key, item.label)
    splits = {item.category for item in labels}
    kept: list[Question] = []
    changed = 0
    for question in questions:
        key = image_key(question.image), question_key(question.text)
        label = by_split.get((question.category, *key)) if question.category in splits else anywhere.get(key)
        if label is not None:
            changed += label != question.label
            kept.append(replace(question, label=label))
    if not kept:
        asked = next(chain(questions, labels)).sample_id
        raise LvlmAttnError(
            f"none of the {len(questions)} questions (first: {asked}) has a label in the file given for them; "
            "name the RePOPE file of the same pictures."
        )
    return Relabelled(tuple(kept), len(questions) - len(kept), changed)
