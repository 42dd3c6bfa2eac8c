"""Trains an adapter for the toy: ``python -m lvlm_attn.toy.adapter.train --out FILE``.

The model is frozen; only the branches learn, from the toy's training conversations about pictures that are pooled
to a few tokens. An interrupted run goes on from its last checkpoint under ``--work``. The paper trains projector and
language model as well (arXiv 2505.17020, section 4.1); here both stay what they are, so that the same model serves
with and without the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from numpy.typing import NDArray
from torch.nn import functional as F

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from lvlm_attn.hooks.crosslmm.weights import save_adapter
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.toy.adapter.recipe import BUNDLED, SMOKE, AdapterRecipe
from lvlm_attn.toy.adapter.short import short_hidden
from lvlm_attn.toy.bundle import load
from lvlm_attn.toy.data import Batch, draw_batch, pick_rows
from lvlm_attn.toy.loops import run, step_rng
from lvlm_attn.toy.pool import Pool, build_pool
from lvlm_attn.toy.vision_stages import cache_features
from lvlm_attn.wrapping import wrap


def answer_loss(
    model: Any, adapter: CrossLMMAdapter, batch: Batch, features: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Cross-entropy of the answers' tokens on shortened prompts, and how many of them are right.

    Args:
        model: the toy.
        adapter: its adapter.
        batch: conversations about one picture each.
        features: `(batch, patches, vision width)` output of the vision tower.
    """
    patches = model.model.multi_modal_projector(features)
    hidden, kept = short_hidden(model, adapter, batch.input_ids, batch.image_starts[0], patches)
    labels = batch.labels[:, kept]
    answers = labels[:, 1:] != -100
    logits = model.lm_head(hidden[:, :-1][answers])
    target = labels[:, 1:][answers]
    counted = target != model.config.text_config.eos_token_id
    right = (logits.argmax(-1) == target)[counted].float().mean()
    return F.cross_entropy(logits, target), float(right)


def train(
    model: Any,
    tokenizer: Any,
    recipe: AdapterRecipe,
    pool: Pool,
    cached: NDArray[Any],
    work: Path,
    seed: int,
    stop_at: int | None = None,
) -> CrossLMMAdapter:
    """Trains an adapter; what an earlier, interrupted run finished is not done again.

    Args:
        model: the toy; its parameters are frozen here.
        tokenizer: its tokenizer.
        recipe: the run.
        pool: training pictures.
        cached: the vision tower's features of the pool.
        work: folder of the checkpoint and the log.
        seed: seed of the batches.
        stop_at: stop after this step, as an interruption would.
    """
    model.requires_grad_(False)
    patches = pool.labels.shape[1]
    adapter = CrossLMMAdapter.for_model(
        model, K=recipe.K, offset=recipe.offset, grid=recipe.grid, kv_norm=recipe.kv_norm
    )
    with torch.no_grad():
        for name, value in adapter.named_parameters():
            if name.endswith("gate"):
                value.fill_(recipe.gate)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, recipe.plan.name, step)
        rows = pick_rows(rng, len(pool.facts), recipe.batch)
        facts = [pool.facts[int(row)] for row in rows]
        kind, drawn = draw_batch(rng, tokenizer, facts, recipe.text, patches)
        loss, right = answer_loss(model, adapter, drawn, torch.from_numpy(cached[rows]).float())
        return loss, {kind: right}

    work.mkdir(parents=True, exist_ok=True)
    run(recipe.plan, adapter.parameters(), {"adapter": adapter}, loss_at, work, stop_at)
    return adapter.eval()


def yes_no_accuracy(model: Any, processor: Any, items: Sequence[Intervention], scenes: int) -> float:
    """Share of POPE questions about the first `scenes` pictures of the toy's dev split that are answered rightly.

    The answer is the likelier of Yes and No as the first token.
    """
    from lvlm_attn.evals.pope.build import ImageObjects, build_questions
    from lvlm_attn.prompts.chat import encode_prompts
    from lvlm_attn.toy import scenes as draw_scenes

    shown = {scene.id: scene for scene in draw_scenes("dev", scenes)}
    built = build_questions([ImageObjects(scene.id, scene.names) for scene in shown.values()], k=3, seed=0)
    questions = [question for group in built.values() for question in group]
    words = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    right = 0
    with torch.no_grad(), wrap(model, *items):
        for start in range(0, len(questions), 32):
            part = questions[start : start + 32]
            images = [shown[question.image].image for question in part]
            inputs = encode_prompts(processor, images, [question.text for question in part])
            yes, no = model(**inputs).logits[:, -1, words].unbind(1)
            right += sum(
                said == (question.label == "yes") for said, question in zip((yes > no).tolist(), part)
            )
    return right / len(questions)


def main(
    out: Annotated[Path, typer.Option(help="File for the trained adapter, .safetensors.")],
    work: Annotated[Path, typer.Option(help="Folder for pictures, features and checkpoints.")] = Path(
        "toy-work"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the batches.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    scenes: Annotated[
        int, typer.Option(help="Dev scenes to measure yes/no accuracy on afterwards; 0 for none.")
    ] = 100,
    smoke: Annotated[
        bool, typer.Option(help="A run of seconds that only shows that everything works.")
    ] = False,
) -> None:
    """Trains an adapter for the bundled toy; run it again to go on after an interruption."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    recipe = SMOKE if smoke else BUNDLED
    try:
        model, processor = load()
        pool = build_pool(recipe.pool, work / f"pool-{recipe.name}", _patch(model), threads)
        cached = cache_features(model, pool, work / f"features-{recipe.name}.npy")
        adapter = train(model, processor.tokenizer, recipe, pool, cached, work, seed)
        save_adapter(adapter, out, torch.float16)
        typer.echo(f"wrote {out}")
        if scenes:
            items: dict[str, list[Intervention]] = {
                "all patches": [],
                "pooled": [CrossLMM.reuse(grid=recipe.grid, w=0.0)],
                "pooled, with the adapter": [CrossLMM(weights=str(out))],
            }
            for label, chosen in items.items():
                typer.echo(f"{label}: {yes_no_accuracy(model, processor, chosen, scenes):.3f}")
    except LvlmAttnError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None


def _patch(model: Any) -> int:
    return int(model.config.vision_config.patch_size)


if __name__ == "__main__":
    typer.run(main)
