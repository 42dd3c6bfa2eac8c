"""Stages 7 to 11: views for the vision tower, planted sinks, a language prior, and captions that repeat no name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_attn.toy.planting import Planted
from lvlm_attn.toy.pool import Pool, build_pool
from lvlm_attn.toy.prior_stage import Array, train_priors
from lvlm_attn.toy.sink_keys import calibrate_keys, plant_sinks
from lvlm_attn.toy.team import ALONE, Team
from lvlm_attn.toy.view_stage import train_views
from lvlm_attn.toy.vision_stages import cache_features

if TYPE_CHECKING:
    from lvlm_attn.toy.recipe import Recipe

#: Those that a toy with planted sinks still has before it when training starts from it.
LAST_STAGES = ("recalling", "widening")
LATER_STAGES = ("views", "planting", "priors", *LAST_STAGES)


def train_later(
    model: Any,
    tokenizer: Any,
    recipe: Recipe,
    work: Path,
    seed: int,
    last: str,
    workers: int,
    team: Team = ALONE,
    planted: Planted | None = None,
) -> Planted | None:
    """Runs stages 7 to 11 on a toy that has passed those before.

    Args:
        model: The toy.
        tokenizer: Its tokenizer.
        recipe: The run.
        work: Folder of pictures, features and checkpoints.
        seed: Seed of the batches.
        last: Name of the last stage to run.
        workers: Processes that draw pictures.
        team: The processes that train together.
        planted: What has been planted, in a toy that has passed stage 9; only stages 10 and 11 are run then.

    Returns:
        What was planted; None if the run ends before that.
    """

    def features_of(name: str) -> Array:
        return cache_features(model, pools[name], work / f"features-{name}-views.npy")

    if planted is None:
        with team.in_turn():
            views, plans = _drawn("views", recipe, work, workers), (recipe.readings, recipe.views)
            corner = train_views(model, views, plans, work, seed, recipe.views_batch)
        if last == "views":
            return None
    with team.in_turn():
        pools = {name: _drawn(name, recipe, work, workers) for name in ("full", "glimpses")}
        cached = {"full": features_of("full")}
    stages = [(recipe.recalling, recipe.recall), (recipe.widening, recipe.widen)]
    if planted is None:
        planted = team.told(
            plant_sinks(model, tokenizer, pools["full"], cached["full"], corner, recipe.sinks, seed)
        )
        if last == "planting":
            return planted
        stages.insert(0, (recipe.priors, recipe.prior))
    for plan, config in stages:
        if config.pool not in cached:
            with team.in_turn():
                pools[config.pool] = _drawn(config.pool, recipe, work, workers)
                cached[config.pool] = features_of(config.pool)
        seen = cached[config.pool]
        train_priors(model, tokenizer, pools, seen, planted, recipe, plan, config, work, seed, team)
        calibrate_keys(model, tokenizer, pools["full"], cached["full"], planted, recipe.sinks, seed)
        if last == plan.name:
            break
    return planted


def _drawn(name: str, recipe: Recipe, work: Path, workers: int) -> Pool:
    """One of the recipe's pools, drawn unless it is on disk."""
    specs = {**recipe.pools, **recipe.later_pools}
    return build_pool(specs[name], work / f"pool-{name}", recipe.sizes.patch, workers)
