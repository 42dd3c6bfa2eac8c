"""Trains the toy from nothing: ``python -m lvlm_attn.toy.train --out FOLDER``.

Six stages, each resumed from its last checkpoint: the vision tower names what lies on each patch; the projector
turns that into the words' embeddings; the language model learns to answer, then to describe, then does both a while
longer, twice. Pictures, features and checkpoints are kept under ``--work``.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy.bundle import save
from lvlm_attn.toy.language_stage import train_language
from lvlm_attn.toy.model import build_model
from lvlm_attn.toy.pool import build_pool
from lvlm_attn.toy.recipe import BUNDLED, SMOKE, Recipe
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.tokenizer import build_processor, token_ids
from lvlm_attn.toy.vision_stages import cache_features, train_projector, train_vision

STAGES = ("vision", "projector", "language", "describing", "polishing", "settling")


def train(recipe: Recipe, work: Path, seed: int, last: str = "settling", workers: int = 2) -> tuple[Any, Any]:
    """Runs the stages up to ``last``; what an earlier, interrupted run finished is not done again.

    Args:
        recipe: The run.
        work: Folder of pictures, features and checkpoints.
        seed: Seed of weights and batches.
        last: Name of the last stage to run.
        workers: Processes that draw pictures.

    Returns:
        The model and its processor.

    Raises:
        LvlmAttnError: No such stage.
    """
    if last not in STAGES:
        raise LvlmAttnError(f"There is no stage {last!r}; the stages are {', '.join(STAGES)}.")
    processor = build_processor(recipe.sizes)
    tokenizer = processor.tokenizer
    model = build_model(recipe.sizes, token_ids(tokenizer), seed)
    patch = recipe.sizes.patch
    pictures = build_pool(recipe.pools["vision"], work / "pool-vision", patch, workers)
    train_vision(model, pictures, (recipe.vision, recipe.placing), work, seed, recipe.vision_batch)
    if last == "vision":
        return model, processor
    pools = {
        name: build_pool(spec, work / f"pool-{name}", patch, workers)
        for name, spec in recipe.pools.items()
        if name != "vision"
    }
    cached = {
        name: cache_features(model, pool, work / f"features-{name}.npy") for name, pool in pools.items()
    }
    word_ids = tokenizer.convert_tokens_to_ids([name.replace(" ", "_") for name in vocabulary()])
    place_ids = tokenizer.convert_tokens_to_ids(["left", "right", "top", "bottom", "visible"])
    train_projector(
        model,
        cached["full"],
        pools["full"],
        recipe.projector,
        work,
        seed,
        word_ids,
        place_ids,
        recipe.vision_batch,
    )
    if last == "projector":
        return model, processor
    common: dict[str, Any] = {"folder": work, "seed": seed, "batch": recipe.language_batch}
    train_language(
        model,
        tokenizer,
        pools,
        cached,
        recipe.lessons,
        recipe.text,
        recipe.language,
        stop_at=recipe.language_until,
        **common,
    )
    if last == "language":
        return model, processor
    lessons, text = recipe.describing_lessons, recipe.describing_text
    train_language(model, tokenizer, pools, cached, lessons, text, recipe.describing, **common)
    if last == "describing":
        return model, processor
    train_language(model, tokenizer, pools, cached, lessons[-1:], text, recipe.polishing, **common)
    if last == "settling":
        text = recipe.settling_text
        train_language(model, tokenizer, pools, cached, lessons[-1:], text, recipe.settling, **common)
    return model, processor


def main(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    work: Annotated[Path, typer.Option(help="Folder for pictures, features and checkpoints.")] = Path(
        "toy-work"
    ),
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    stage: Annotated[
        str,
        typer.Option(
            help="Last stage to run: vision, projector, language, describing, polishing or settling."
        ),
    ] = "settling",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    smoke: Annotated[
        bool, typer.Option(help="A run of seconds that only shows that everything works.")
    ] = False,
) -> None:
    """Trains the toy; run it again to go on after an interruption."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    try:
        model, processor = train(SMOKE if smoke else BUNDLED, work, seed, stage, threads)
    except LvlmAttnError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    save(model, processor, out)
    typer.echo(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
