"""Stages 9 to 11: the language model learns what to say when it cannot see, from true answers to missing pictures.

What it then says without a picture is what training scenes make likely: the language prior that VCD, PAI and ICD
contrast against. Stages 10 and 11 show and ask the same in other shares, most of it captions of pictures that can be
seen, and keep them from naming an object twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from numpy.typing import NDArray

from lvlm_attn.toy.captions import CaptionConfig
from lvlm_attn.toy.data import TextConfig, draw_batch, pick_rows
from lvlm_attn.toy.gaze import gaze_loss
from lvlm_attn.toy.language_stage import answers_loss, embed_batch, name_weights
from lvlm_attn.toy.loops import Plan, run, step_rng
from lvlm_attn.toy.pair_texts import draw_pair_batch, pick_pairs
from lvlm_attn.toy.planting import Planted, hold
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.repeats import again_loss
from lvlm_attn.toy.sink_keys import sink_loss
from lvlm_attn.toy.team import ALONE, Team
from lvlm_attn.toy.tokenizer import object_ids
from lvlm_attn.toy.view_stage import add_noise
from lvlm_attn.toy.vision_stages import features, labels_of, to_pixel_values
from lvlm_attn.toy.world import Rng

if TYPE_CHECKING:
    from lvlm_attn.toy.recipe import Recipe

Array: TypeAlias = NDArray[Any]


def _text(habits: float) -> TextConfig:
    caption = CaptionConfig(habit_scale=habits, mood_share=0.9, short_share=0.5)
    return TextConfig(
        yes_no=0.45,
        places=0.05,
        text_only=0.0,
        hard_share=0.12,
        popular_share=0.25,
        coin_flips=False,
        caption=caption,
    )


@dataclass(frozen=True)
class PriorConfig:
    """What stages 9 to 11 show and ask.

    Attributes:
        pool: Which pictures.
        none: Share of batches without a picture.
        blank: Share of batches with a picture of one colour.
        noise: Share of batches with a noisy picture.
        glimpse: Share of batches with crops, masks and blur, which get yes/no questions only.
        pairs: Share of batches with two pictures per prompt, half as many conversations as the others.
        noise_steps: Smallest and largest step of VCD's schedule.
        seen: What is said of pictures; what an object's name counts in captions is ``object_weight``.
        unseen: What is said of pictures that are not, or badly, seen: true answers, and stronger habits.
        object_weight: What the name of an object counts in the loss of a caption; any other word counts 1.
        joint_weights: What a comma and an "and" count there: whether one more object is to come is hard to see.
        again: What naming an object again counts, in captions of pictures that are seen.
    """

    pool: str = "full"
    none: float = 0.2
    blank: float = 0.1
    noise: float = 0.15
    glimpse: float = 0.12
    pairs: float = 0.18
    noise_steps: tuple[int, int] = (300, 999)
    seen: TextConfig = field(default_factory=lambda: _text(0.2))
    unseen: TextConfig = field(default_factory=lambda: _text(1.3))
    object_weight: float = 5.0
    joint_weights: tuple[float, float] = (1.0, 1.0)
    again: float = 0.0


def draw_sight(rng: Rng, config: PriorConfig) -> str:
    """Draws what a batch sees: "none", "blank", "noise", "glimpse", "pairs" or "picture"."""
    value = rng.random()
    for name in ("none", "blank", "noise", "glimpse", "pairs"):
        share = float(getattr(config, name))
        if value < share:
            return name
        value -= share
    return "picture"


def blank_pictures(rng: Rng, count: int, size: int) -> torch.Tensor:
    """Pictures of one colour each: black, white, grey or any.

    Returns:
        (count, 3, size, size) in -1..1.
    """
    colours = torch.from_numpy(rng.uniform(-1, 1, (count, 3))).float()
    fixed = torch.tensor([-1.0, 1.0, 0.0])[torch.from_numpy(rng.integers(0, 3, count))]
    is_fixed = torch.from_numpy(rng.random(count) < 0.5)
    colours[is_fixed] = fixed[is_fixed][:, None]
    return colours[:, :, None, None].expand(-1, -1, size, size).contiguous()


# Long because a stage of training is read in one piece: its losses beside its schedule.
def train_priors(
    model: Any,
    tokenizer: Any,
    pools: Mapping[str, Pool],
    cached: Array,
    planted: Planted,
    recipe: Recipe,
    plan: Plan,
    config: PriorConfig,
    folder: Path,
    seed: int,
    team: Team = ALONE,
) -> None:
    """Trains projector and language model; the planted circuit is held, and the sinks' mass with it.

    Args:
        model: The toy, with sinks planted.
        tokenizer: Its tokenizer.
        pools: Training pictures, and views "glimpses".
        cached: The vision tower's features of the pictures that the stage shows.
        planted: What was planted.
        recipe: The run.
        plan: The stage's schedule.
        config: What it shows and asks.
        folder: Where checkpoints are kept.
        seed: Seed of the batches.
        team: The processes that share each step's conversations.
    """
    text, projector = model.model.language_model, model.model.multi_modal_projector
    pad = model.config.text_config.pad_token_id
    names = name_weights(tokenizer, config.object_weight)
    names[tokenizer.convert_tokens_to_ids([",", "and"])] = torch.tensor(config.joint_weights)
    objects = torch.tensor(object_ids(tokenizer))
    patches = pools[config.pool].labels.shape[1]

    def see(rng: Rng, sight: str, pool: Pool, rows: Array, own: slice) -> torch.Tensor | None:
        if sight == "none":
            return None
        if sight == "pairs":
            return torch.from_numpy(cached[rows]).float().view(len(rows) // 2, 2 * patches, -1)[own]
        if sight == "picture":
            return torch.from_numpy(cached[rows[own]]).float()
        if sight == "blank":
            pictures = blank_pictures(rng, len(rows), recipe.sizes.image)
        else:
            pictures = to_pixel_values(pool.pixels[rows])
        if sight == "noise":
            pictures = add_noise(rng, pictures, config.noise_steps)
        with torch.no_grad():
            return features(model, pictures[own])

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, plan.name, step)
        sight = draw_sight(rng, config)
        pool = pools["glimpses" if sight == "glimpse" else config.pool]
        asked = _conversations(config, sight)
        if sight == "pairs":
            rows = pick_pairs(rng, pool.facts, max(1, recipe.language_batch // 2))
        else:
            rows = pick_rows(rng, len(pool.facts), recipe.language_batch)
        facts = [pool.facts[int(row)] for row in rows]
        draw = draw_pair_batch if sight == "pairs" else draw_batch
        kind, drawn = draw(rng, tokenizer, facts, asked, patches)
        own = team.part(len(drawn.input_ids))
        part = drawn.rows(own)
        embedded = embed_batch(model, part, see(rng, sight, pool, rows, own))
        output = text(inputs_embeds=embedded, use_cache=False, output_attentions=True)
        weight = names if kind == "caption" else None
        logits = model.lm_head(output.last_hidden_state[:, :-1][part.labels[:, 1:] != -100])
        loss, right = answers_loss(model, logits, drawn, weight, own)
        again = torch.zeros(())
        if config.again and sight == "picture" and kind == "caption":
            again = again_loss(logits, drawn, own, objects)
        is_sink = embedded[..., planted.dimension].detach() > 0.5
        holding, figures = sink_loss(output.attentions, part, is_sink, planted, recipe.sinks, pad, team)
        figures["holding"] = float(holding.detach())
        if drawn.image_starts:
            seen = None
            if sight in ("picture", "glimpse", "pairs"):
                seen = labels_of(pool, rows).view(-1, len(drawn.image_starts), patches)
            looks, found = gaze_loss(output.attentions, drawn, own, is_sink, seen)
            loss, figures = loss + looks, {**figures, **found}
        if config.again:
            figures["again"] = float(again.detach())
        return loss + holding + config.again * again, {**figures, f"{sight}/{kind}": right}

    model.set_attn_implementation("eager")
    model.train()
    handles = hold(model, planted)
    try:
        modules = {"text": text, "projector": projector, "lm_head": model.lm_head}
        weights = [*text.parameters(), *projector.parameters(), *model.lm_head.parameters()]
        run(plan, weights, modules, loss_at, folder, team=team)
    finally:
        for handle in handles:
            handle.remove()
    model.eval()


def _conversations(config: PriorConfig, sight: str) -> TextConfig:
    if sight in ("picture", "pairs"):
        return config.seen
    if sight == "glimpse":
        return dataclasses.replace(config.seen, yes_no=1.0, places=0.0)
    return dataclasses.replace(config.unseen, text_only=1.0 if sight == "none" else 0.0)
