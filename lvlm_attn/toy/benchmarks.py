"""POPE and CHAIR on the bundled toy's scenes, whose objects are known.

Tune on ``dev``, report on ``test``; the pictures of the two are disjoint.
"""

from __future__ import annotations

from lvlm_attn.errors import LvlmAttnError, count_of
from lvlm_attn.evals.chair.benchmark import PROMPT, Chair
from lvlm_attn.evals.chair.vocab import nodes_of
from lvlm_attn.evals.pope.benchmark import Pope
from lvlm_attn.evals.pope.build import ImageObjects, build_questions
from lvlm_attn.toy import scenes

QUESTION_SEED = 0
PAIRS = 3
ENOUGH = 20
"""So many scenes are enough in every split."""
CAPTION_TOKENS = 64
"""Length limit of captions of the toy's scenes, which take 30 tokens; everywhere, so that commands agree."""


def toy_pope(
    split: str = "test", count: int | None = None, parser: str = "strict", limit: int | None = None
) -> Pope:
    """POPE questions about the toy's scenes, built by the POPE protocol with seed 0.

    Args:
        split: ``dev``, ``test`` or ``fresh``.
        count: number of scenes, the first of the split; those with fewer than 3 kinds of objects are passed
            over.
        parser: the rule that reads answers.
        limit: questions per category.

    Raises:
        LvlmAttnError: unknown split, or too few scenes.
    """
    shown = tuple(scenes(split, count))  # drawn once, then read several times
    pictures = [ImageObjects(scene.id, scene.names) for scene in shown]
    try:
        built = build_questions(pictures, k=PAIRS, seed=QUESTION_SEED)
    except LvlmAttnError as error:
        raise LvlmAttnError(
            f"POPE needs more than the first {count_of(len(shown), 'scene')} of the toy's {split} split: some with at "
            f"least {PAIRS} kinds of objects, and others that lack them; take more (--scenes, or count), such as "
            f"{ENOUGH}."
        ) from error
    questions = [question for rows in built.values() for question in rows]
    dataset = {
        "data": "toy",
        "split": split,
        "scenes": len(shown),
        "k": PAIRS,
        "question_seed": QUESTION_SEED,
    }
    return Pope(questions, {scene.id: scene.image for scene in shown}, dataset, parser, limit)


def toy_chair(
    split: str = "test",
    count: int | None = None,
    mode: str = "strict",
    drop_incomplete_sentence: bool = False,
    prompt: str = PROMPT,
    limit: int | None = None,
) -> Chair:
    """The toy's scenes to describe.

    Args:
        split: ``dev``, ``test`` or ``fresh``.
        count: number of scenes, the first of the split.
        mode: how words become categories.
        drop_incomplete_sentence: cut captions after their last full stop before scoring.
        prompt: what to ask.
        limit: like ``count``.

    Raises:
        LvlmAttnError: unknown split, or too few scenes.
    """
    shown = tuple(scenes(split, count))  # drawn once, then read several times
    pictures = {scene.id: scene.image for scene in shown}
    truth = {scene.id: nodes_of(scene.names, mode)[0] for scene in shown}
    dataset = {"data": "toy", "split": split, "scenes": len(shown)}
    chair = Chair(pictures, truth, dataset, mode, drop_incomplete_sentence, prompt, limit)
    chair.max_new_tokens = CAPTION_TOKENS
    return chair
