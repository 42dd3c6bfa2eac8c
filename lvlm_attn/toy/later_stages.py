"""Stages 7 to 9: views for the vision tower, planted sinks, and a language prior for the language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.toy.planting import Planted
from lvlm_attn.toy.pool import build_pool
from lvlm_attn.toy.prior_stage import train_priors
from lvlm_attn.toy.sink_keys import calibrate_keys, plant_sinks
from lvlm_attn.toy.team import ALONE, Team
from lvlm_attn.toy.view_stage import train_views
from lvlm_attn.toy.vision_stages import cache_features

if TYPE_CHECKING:
    from lvlm_attn.toy.recipe import Recipe

LATER_STAGES = ("views", "planting", "priors")


def train_later(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    work: Path,
    seed: int,
    last: str,
    workers: int,
    team: Team = ALONE,
) -> Planted | None:
    """Runs stages 7 to 9 on a toy that has passed those before.

    Args:
        model: The toy.
        tokenizer: Its tokenizer.
        recipe: The run.
        work: Folder of pictures, features and checkpoints.
        seed: Seed of the batches.
        last: Name of the last stage to run.
        workers: Processes that draw pictures.
        team: The processes that train together.

    Returns:
        What was planted; None if the run ends before that.
    """
    patch = recipe.sizes.patch
    with team.in_turn():
        pools = {
            name: build_pool(spec, work / f"pool-{name}", patch, workers)
            for name, spec in recipe.later_pools.items()
        }
        corner = train_views(
            model, pools["views"], (recipe.readings, recipe.views), work, seed, recipe.views_batch
        )
    if last == "views":
        return None
    with team.in_turn():
        pools["full"] = build_pool(recipe.pools["full"], work / "pool-full", patch, workers)
        cached = cache_features(model, pools["full"], work / "features-full-views.npy")
    planted = team.told(plant_sinks(model, tokenizer, pools["full"], cached, corner, recipe.sinks, seed))
    if last == "planting":
        return planted
    train_priors(model, tokenizer, pools, cached, planted, recipe, work, seed, team)
    calibrate_keys(model, tokenizer, pools["full"], cached, planted, recipe.sinks, seed)
    return planted
