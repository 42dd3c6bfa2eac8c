"""Trains the toy from nothing: ``python -m lvlm_attn.toy.train --out FOLDER``.

Eleven stages, each resumed from its last checkpoint: the vision tower names what lies on each patch; the projector
turns that into the words' embeddings; the language model learns to answer, then to describe, then does both a while
longer, twice. Then what the methods act on is put in: the tower learns crops, masks and noise, attention sinks are
planted, and the language model learns what to say when it cannot see, then to name no object twice, then the same on
more pictures. Some prompts hold two pictures.
Pictures, features and checkpoints are kept under ``--work``, and the log of all stages is written beside the model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy.bundle import load, planted, save
from lvlm_attn.toy.data import TextConfig
from lvlm_attn.toy.language_stage import Lesson, train_language
from lvlm_attn.toy.later_stages import LAST_STAGES, LATER_STAGES, train_later
from lvlm_attn.toy.loops import Plan
from lvlm_attn.toy.model import build_model
from lvlm_attn.toy.planting import FILE, Planted
from lvlm_attn.toy.pool import build_pool
from lvlm_attn.toy.recipe import BUNDLED, SMOKE, Recipe
from lvlm_attn.toy.team import ALONE, Team, work_together
from lvlm_attn.toy.tokenizer import build_processor, object_ids, token_ids
from lvlm_attn.toy.vision_stages import cache_features, train_projector, train_vision

FIRST_STAGES = ("vision", "projector", "language", "describing", "polishing", "settling")
STAGES = (*FIRST_STAGES, *LATER_STAGES)


def train(
    recipe: Recipe,
    work: Path,
    seed: int,
    last: str = STAGES[-1],
    workers: int = 2,
    start: Path | None = None,
    team: Team = ALONE,
) -> tuple[Any, Any, Planted | None]:
    """Runs the stages up to ``last``; what an earlier, interrupted run finished is not done again.

    Args:
        recipe: The run.
        work: Folder of pictures, features and checkpoints.
        seed: Seed of weights and batches.
        last: Name of the last stage to run.
        workers: Processes that draw pictures.
        start: Folder of a toy that has passed the stages before "views" or, with planted sinks, before "recalling",
            which are then skipped; None runs them.
        team: The processes that train together, each of which calls this.

    Returns:
        The model, its processor, and what was planted in it; None if the run ends before that.

    Raises:
        LvlmAttnError: No such stage, or one that the start has passed.
    """
    check_stage(last, start)
    processor, sinks = build_processor(recipe.sizes), None
    if start is not None:
        model, _ = load(folder=start)
        sinks = planted(start) if _is_planted(start) else None
        work.mkdir(parents=True, exist_ok=True)
    else:
        model = build_model(recipe.sizes, token_ids(processor.tokenizer), seed)
        _train_first(model, processor.tokenizer, recipe, work, seed, last, workers, team)
    if last in FIRST_STAGES:
        return model, processor, None
    sinks = train_later(model, processor.tokenizer, recipe, work, seed, last, workers, team, sinks)
    return model, processor, sinks


def check_stage(last: str, start: Path | None) -> None:
    """Raises ``LvlmAttnError`` if there is no such stage, or it is one that the start has passed."""
    if last not in STAGES:
        raise LvlmAttnError(f"There is no stage {last!r}; the stages are {', '.join(STAGES)}.")
    if start is None:
        return
    left = LAST_STAGES if _is_planted(start) else LATER_STAGES
    if last not in left:
        raise LvlmAttnError(
            f"Stage {last!r} is already in the model that training starts from; choose one of "
            f"{', '.join(left)}, or leave the start out."
        )


def _is_planted(folder: Path) -> bool:
    """Whether a toy has passed the stages before "recalling"."""
    return (folder / FILE).is_file()


def _train_first(
    model: Any, tokenizer: Any, recipe: Recipe, work: Path, seed: int, last: str, workers: int, team: Team
) -> None:
    """The stages before "views"."""
    patch = recipe.sizes.patch
    with team.in_turn():
        pictures = build_pool(recipe.pools["vision"], work / "pool-vision", patch, workers)
        train_vision(model, pictures, (recipe.vision, recipe.placing), work, seed, recipe.vision_batch)
    if last == "vision":
        return
    with team.in_turn():
        pools = {
            name: build_pool(spec, work / f"pool-{name}", patch, workers)
            for name, spec in recipe.pools.items()
            if name != "vision"
        }
        cached = {
            name: cache_features(model, pool, work / f"features-{name}.npy") for name, pool in pools.items()
        }
        words = object_ids(tokenizer)
        places = tokenizer.convert_tokens_to_ids(["left", "right", "top", "bottom", "visible"])
        train_projector(
            model,
            cached["full"],
            pools["full"],
            recipe.projector,
            work,
            seed,
            words,
            places,
            recipe.vision_batch,
        )
    if last == "projector":
        return
    for name, lessons, text, plan, stop_at in _language_stages(recipe):
        train_language(
            model,
            tokenizer,
            pools,
            cached,
            lessons,
            text,
            plan,
            folder=work,
            seed=seed,
            batch=recipe.language_batch,
            shares=recipe.language_shares,
            stop_at=stop_at,
            team=team,
        )
        if last == name:
            return


def _language_stages(
    recipe: Recipe,
) -> Iterator[tuple[str, tuple[Lesson, ...], TextConfig, Plan, int | None]]:
    """Stages 3 to 6: name, curriculum, conversations, schedule, and the step after which it stops."""
    further, text = recipe.describing_lessons, recipe.describing_text
    yield "language", recipe.lessons, recipe.text, recipe.language, recipe.language_until
    yield "describing", further, text, recipe.describing, None
    yield "polishing", further[-1:], text, recipe.polishing, None
    told = replace(further[-1], says=True)
    yield "settling", (told,), recipe.settling_text, recipe.settling, None


def train_and_save(
    team: Team,
    recipe: Recipe,
    work: Path,
    out: Path,
    seed: int,
    last: str,
    start: Path | None,
) -> None:
    """Trains in a team, whose first process writes the model and the log of all stages; arguments as for ``train``."""
    most = recipe.language_batch // recipe.language_shares // 2  # pairs of pictures in a step
    if team.size > most:
        raise LvlmAttnError(f"{team.size} processes cannot share a step of this recipe; use at most {most}.")
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    model, processor, sinks = train(recipe, work, seed, last, max(1, team.threads), start, team)
    if team.rank == 0:
        save(model, processor, out, sinks)
        write_log(recipe, work, out / "training.log")


def write_log(recipe: Recipe, work: Path, path: Path) -> None:
    """Joins the logs of all stages that have one, in the order in which they ran."""
    parts = [(plan.name, work / f"{plan.name}.log") for plan in recipe.plans]
    kept = [f"# {name}\n{log.read_text()}" for name, log in parts if log.is_file()]
    path.write_text("".join(kept))


def main(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    work: Annotated[Path, typer.Option(help="Folder for pictures, features and checkpoints.")] = Path(
        "toy-work"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    stage: Annotated[
        str,
        typer.Option(help=f"Last stage to run: {', '.join(STAGES)}."),
    ] = STAGES[-1],
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a toy that has passed all stages before 'views' or 'recalling', to run only the others."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads, of all processes together.")] = 2,
    processes: Annotated[
        int,
        typer.Option(
            min=1, help="Processes that share the language model's steps, at most as many as threads."
        ),
    ] = 2,
    smoke: Annotated[
        bool, typer.Option(help="A run of seconds that only shows that everything works.")
    ] = False,
) -> None:
    """Trains the toy; run it again to go on after an interruption.

    With another number of processes or threads sums are rounded otherwise.
    """
    recipe = SMOKE if smoke else BUNDLED
    arguments = (recipe, work, out, seed, stage, start)
    try:
        check_stage(stage, start)
        processes = min(processes, threads)
        if processes == 1:
            torch.set_num_threads(threads)
            train_and_save(Team(threads=threads), *arguments)
        else:
            work_together(train_and_save, arguments, processes, threads)
    except LvlmAttnError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
