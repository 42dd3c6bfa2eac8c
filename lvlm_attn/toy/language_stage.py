"""Stage 3: the language model learns to answer and to describe, on a curriculum of pictures."""

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
from lvlm_attn.toy.loops import Plan, run, step_rng
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.sprites import vocabulary

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
    """

    until: int
    pool: str
    classes: int | None = None
    yes_no: float | None = None
    plain: bool = False
    object_weight: float = 1.0


def lesson_at(lessons: Sequence[Lesson], step: int) -> Lesson:
    """Returns the lesson a step belongs to; the last one has no end."""
    return next((lesson for lesson in lessons if step < lesson.until), lessons[-1])


def answer_loss(
    model: Any, batch: Batch, features: torch.Tensor | None, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of the answers' tokens, and how many of them are right.

    Args:
        model: The toy.
        batch: Conversations.
        features: (batch, patches, vision width) output of the vision tower; None without pictures.
        weight: (vocabulary,) what each word counts; None for all alike.
    """
    embedded = embed_batch(model, batch, features)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    return answers_loss(model, hidden, batch, weight)


def embed_batch(model: Any, batch: Batch, features: torch.Tensor | None) -> torch.Tensor:
    """Returns (batch, length, width), what enters the language model; arguments as for ``answer_loss``."""
    embedded: torch.Tensor = model.get_input_embeddings()(batch.input_ids)
    if features is not None and batch.image_start is not None:
        image = model.model.multi_modal_projector(features)
        start, stop = batch.image_start, batch.image_start + image.shape[1]
        embedded = torch.cat([embedded[:, :start], image, embedded[:, stop:]], 1)
    return embedded


def answers_loss(
    model: Any, hidden: torch.Tensor, batch: Batch, weight: torch.Tensor | None = None
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of the answers' tokens from (batch, length, width) last hidden states; see ``answer_loss``."""
    answers = batch.labels[:, 1:] != -100
    logits = model.lm_head(hidden[:, :-1][answers])
    target = batch.labels[:, 1:][answers]
    counted = target != model.config.text_config.eos_token_id  # ends are too easy to count
    right = (logits.argmax(-1) == target)[counted].float().mean()
    return F.cross_entropy(logits, target, weight), float(right)


def name_weights(tokenizer: Any, object_weight: float) -> torch.Tensor:
    """Returns (vocabulary,) what each word counts in the loss: names of objects more than others."""
    names = tokenizer.convert_tokens_to_ids([name.replace(" ", "_") for name in vocabulary()])
    return torch.ones(len(tokenizer)).index_fill_(0, torch.tensor(names), object_weight)


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
    stop_at: int | None = None,
) -> None:
    """Stage 3: trains the projector and the language model; the vision tower's features come from the cache.

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
        batch: Pictures per step.
        stop_at: Stop after this step, as an interruption would.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector
    patches = next(iter(pools.values())).labels.shape[1]

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, plan.name, step)
        lesson = lesson_at(lessons, step)
        pool = pools[lesson.pool]
        rows = pick_rows(rng, len(pool.facts), batch)
        mixture = _mixture(config, lesson)
        facts = [pool.facts[int(row)] for row in rows]
        kind, drawn = draw_batch(rng, tokenizer, facts, mixture, patches, lesson.classes)
        seen = None if drawn.image_start is None else torch.from_numpy(cached[lesson.pool][rows]).float()
        weight = None
        if kind == "caption" and lesson.object_weight != 1:
            weight = name_weights(tokenizer, lesson.object_weight)
        loss, right = answer_loss(model, drawn, seen, weight)
        return loss, {kind: right} if seen is not None else {}

    model.train()
    modules = {"text": text, "projector": projector, "lm_head": model.lm_head}
    weights = [*text.parameters(), *projector.parameters(), *model.lm_head.parameters()]
    run(plan, weights, modules, loss_at, folder, stop_at)
    model.eval()


def _mixture(config: TextConfig, lesson: Lesson) -> TextConfig:
    if lesson.plain:
        config = dataclasses.replace(config, suffix_share=0.0, pope_share=1.0, text_only=0.0)
    if lesson.yes_no is None:
        return config
    places = (1 - lesson.yes_no) * config.places / max(1e-9, 1 - config.yes_no)
    return dataclasses.replace(config, yes_no=lesson.yes_no, places=places)
