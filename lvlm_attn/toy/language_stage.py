"""Stages 3 to 6: the language model learns to answer and to describe, on a curriculum of pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lvlm_attn.toy.data import Batch, TextConfig, draw_batch, pick_rows
from lvlm_attn.toy.gaze import cost, figures, gaze_of
from lvlm_attn.toy.lean_text import lean_hidden
from lvlm_attn.toy.loops import Plan, run, step_rng
from lvlm_attn.toy.pair_texts import draw_pair_batch, pick_pairs
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.team import ALONE, Team
from lvlm_attn.toy.tokenizer import object_ids
from lvlm_attn.toy.vision_stages import labels_of
from lvlm_attn.toy.world import Rng

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Lesson:
    """A part of the curriculum.

    Attributes:
        until: First step that no longer belongs to it.
        pool: Which pictures.
        classes: Ask only about the first so many categories; None for all.
        yes_no: Share of yes/no conversations; None for the run's usual mixture.
        plain: Ask in POPE's own words only.
        object_weight: What the name of an object counts in the loss of a caption; any other word counts 1.
        pairs: Share of conversations about two pictures; None for the run's usual.
        says: Whether captions are shown the object that they are about to name.
    """

    until: int
    pool: str
    classes: int | None = None
    yes_no: float | None = None
    plain: bool = False
    object_weight: float = 1.0
    pairs: float | None = None
    says: bool = False


def lesson_at(lessons: Sequence[Lesson], step: int) -> Lesson:
    """Returns the lesson a step belongs to; the last one has no end."""
    return next((lesson for lesson in lessons if step < lesson.until), lessons[-1])


def answer_loss(
    model: Any,
    batch: Batch,
    features: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    team: Team = ALONE,
    seen: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross-entropy of the answers' tokens, and what looking at the wrong place costs.

    Args:
        model: The toy.
        batch: Conversations.
        features: (openings, patches, vision width) output of the vision tower, the pictures of an opening one after
            the other; an opening serves ``batch.shares`` conversations. None without pictures.
        weight: (vocabulary,) what each word counts; None for all alike.
        team: Whose member computes its part of both; the parts add up to what one process computes.
        seen: (openings, pictures, patches) category of each patch; None if names need not look at their objects.

    Returns:
        The loss, and as figures the share of the answers' tokens that are right ("right") and, with pictures, how much
        words look at them in the first layer ("early"), names miss their objects ("missed"), answers the names
        ("unread"), and captions what they are about to name ("blind") and what they have named ("unsaid"); of two
        pictures also how much words look at the one that they are not about ("astray"), names miss the word that
        tells which one they are about ("untold"), and patches their picture's number ("unnumbered").
    """
    own = team.part(len(batch.input_ids) // batch.shares)
    rows = slice(own.start * batch.shares, own.stop * batch.shares)
    gaze = None if features is None else gaze_of(batch, rows, seen)
    if own.start == own.stop:
        kinds = () if gaze is None else gaze.kinds
        return model.lm_head.weight.sum() * 0, dict.fromkeys(("right", *kinds), 0.0)
    first = batch.first_word
    embed = model.get_input_embeddings()
    opening = embed(batch.input_ids[rows, :first][:: batch.shares])
    if features is not None:
        opening = _with_pictures(model, batch, opening, features[own])
    words = embed(batch.input_ids[rows, first:-1])
    is_answer = batch.labels[rows, first + 1 :] != -100
    hidden, looks = lean_hidden(model.model.language_model, opening, words, is_answer, gaze)
    loss, right = answers_loss(model, model.lm_head(hidden), batch, weight, rows)
    return loss + cost(looks), {"right": right, **figures(looks)}


def embed_batch(model: Any, batch: Batch, features: torch.Tensor | None) -> torch.Tensor:
    """Returns (batch, length, width), what enters the language model; arguments as for ``answer_loss``."""
    embedded: torch.Tensor = model.get_input_embeddings()(batch.input_ids)
    if features is not None:
        embedded = _with_pictures(model, batch, embedded, features.repeat_interleave(batch.shares, 0))
    return embedded


def answers_loss(
    model: Any,
    logits: torch.Tensor,
    batch: Batch,
    weight: torch.Tensor | None = None,
    rows: slice = slice(None),
) -> tuple[torch.Tensor, float]:
    """The part that some rows have in the batch's mean cross-entropy, and in its share of right tokens.

    Args:
        model: The toy.
        logits: (answers, vocabulary) before every answer token of the rows.
        batch: The whole batch.
        weight: (vocabulary,) what each word counts; None for all alike.
        rows: Which of its rows.
    """
    end = model.config.text_config.eos_token_id  # ends are too easy to count as right
    own, every = (found[found != -100] for found in (batch.labels[rows, 1:], batch.labels[:, 1:]))
    total = float(len(every) if weight is None else weight[every].sum())
    right = float((logits.argmax(-1) == own)[own != end].sum()) / max(1, int((every != end).sum()))
    return F.cross_entropy(logits, own, weight, reduction="sum") / total, right


def _with_pictures(model: Any, batch: Batch, embedded: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(rows, length, width) with the pictures' embeddings in their places."""
    pictures = model.model.multi_modal_projector(features).chunk(len(batch.image_starts), 1)
    parts, at = [], 0
    for start, picture in zip(batch.image_starts, pictures):
        parts += [embedded[:, at:start], picture]
        at = start + picture.shape[1]
    return torch.cat([*parts, embedded[:, at:]], 1)


def name_weights(tokenizer: Any, object_weight: float) -> torch.Tensor:
    """Returns (vocabulary,) what each word counts in the loss: names of objects more than others."""
    names = torch.tensor(object_ids(tokenizer))
    return torch.ones(len(tokenizer)).index_fill_(0, names, object_weight)


def draw_lesson(
    rng: Rng,
    tokenizer: Any,
    pool: Pool,
    cached: Array,
    config: TextConfig,
    conversations: int,
    shares: int,
    classes: int | None = None,
) -> tuple[str, Batch, torch.Tensor | None, torch.Tensor | None]:
    """Draws a batch about single pictures, or about as many pictures in pairs.

    Args:
        rng: Source of randomness.
        tokenizer: The toy's tokenizer.
        pool: The pictures.
        cached: The vision tower's features of them.
        config: What conversations are made of.
        conversations: How many there are.
        shares: How many are about the same picture; about the same pair, twice as many.
        classes: Ask only about the first so many categories; None for all.

    Returns:
        What the batch is, such as "yes_no" or "pair/caption", the conversations, their features, and
        (openings, pictures, patches) the category of each patch; None, both, without pictures.
    """
    pictures, patches = max(2, conversations // shares), pool.labels.shape[1]
    if config.pairs and rng.random() < config.pairs:
        rows = pick_pairs(rng, pool.facts, pictures // 2)
        facts = [pool.facts[int(row)] for row in rows]
        kind, drawn = draw_pair_batch(rng, tokenizer, facts, config, patches, 2 * shares)
        features = torch.from_numpy(cached[rows]).float()
        seen = labels_of(pool, rows).view(len(rows) // 2, 2, patches)
        return f"pair/{kind}", drawn, features.view(len(rows) // 2, 2 * patches, -1), seen
    rows = pick_rows(rng, len(pool.facts), pictures)
    facts = [pool.facts[int(row)] for row in rows]
    kind, drawn = draw_batch(rng, tokenizer, facts, config, patches, classes, shares)
    if not drawn.image_starts:
        return kind, drawn, None, None
    return kind, drawn, torch.from_numpy(cached[rows]).float(), labels_of(pool, rows)[:, None]


def train_language(
    model: Any,
    tokenizer: Any,
    pools: Mapping[str, Pool],
    cached: Mapping[str, Array],
    lessons: Sequence[Lesson],
    config: TextConfig,
    plan: Plan,
    folder: Path,
    seed: int,
    batch: int = 16,
    shares: int = 1,
    stop_at: int | None = None,
    team: Team = ALONE,
) -> None:
    """Trains the projector and the language model; the vision tower's features come from the cache.

    Args:
        model: The toy.
        tokenizer: Its tokenizer.
        pools: Pictures by the name of their pool.
        cached: The vision tower's features of each pool.
        lessons: The curriculum.
        config: What conversations are made of.
        plan: The schedule.
        folder: Where checkpoints are kept.
        seed: Seed of the batches.
        batch: Conversations per step.
        shares: How many of them are about the same picture.
        stop_at: Stop after this step, as an interruption would.
        team: The processes that share each step's conversations.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, plan.name, step)
        lesson = lesson_at(lessons, step)
        mixture = _mixture(config, lesson)
        kind, drawn, cache, seen = draw_lesson(
            rng, tokenizer, pools[lesson.pool], cached[lesson.pool], mixture, batch, shares, lesson.classes
        )
        if not lesson.says:
            drawn = dataclasses.replace(drawn, saying=None)
        weight = None
        if kind.endswith("caption") and lesson.object_weight != 1:
            weight = name_weights(tokenizer, lesson.object_weight)
        loss, found = answer_loss(model, drawn, cache, weight, team, seen)
        right = found.pop("right")
        return loss, {} if seen is None else {kind: right, **found}

    model.train()
    modules = {"text": text, "projector": projector, "lm_head": model.lm_head}
    weights = [*text.parameters(), *projector.parameters(), *model.lm_head.parameters()]
    run(plan, weights, modules, loss_at, folder, stop_at, team)
    model.eval()


def _mixture(config: TextConfig, lesson: Lesson) -> TextConfig:
    if lesson.plain:
        config = dataclasses.replace(config, suffix_share=0.0, pope_share=1.0, text_only=0.0)
    if lesson.pairs is not None:
        config = dataclasses.replace(config, pairs=lesson.pairs)
    if lesson.yes_no is None:
        return config
    places = (1 - lesson.yes_no) * config.places / max(1e-9, 1 - config.yes_no)
    return dataclasses.replace(config, yes_no=lesson.yes_no, places=places)
