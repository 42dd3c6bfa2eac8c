"""Stages 1 and 2: the vision tower learns what lies on each patch, the projector learns the words for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from lvlm_attn.toy.loops import Plan, run, step_rng
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.sprites import vocabulary

Array: TypeAlias = NDArray[Any]


def to_pixel_values(pixels: Array) -> torch.Tensor:
    """Returns (batch, 3, size, size) floats in -1..1 from (batch, size, size, 3) bytes, as the processor does."""
    return torch.tensor(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def labels_of(pool: Pool, rows: Array) -> torch.Tensor:
    """Returns (rows, patches) int64, the category of each patch of some pictures."""
    return torch.from_numpy(pool.labels[rows].astype(np.int64))


# Long because a stage of training is read in one piece: its losses beside its schedule.
def train_vision(
    model: Any,
    pool: Pool,
    plans: tuple[Plan, Plan],
    folder: Path,
    seed: int,
    batch: int = 32,
    stop_at: int | None = None,
) -> None:
    """Stage 1: every patch of the vision tower's last layer names its object, then also tells its own place.

    Objects look alike everywhere, so naming alone drops the place of a patch; where-questions need it. Mirrored
    pictures double the pool.

    Args:
        model: The toy; only its vision tower is trained.
        pool: The pictures.
        plans: Schedules of naming, and of naming and placing.
        folder: Where checkpoints are kept.
        seed: Seed of the heads and batches.
        batch: Pictures per step.
        stop_at: Stop each schedule after this step, as an interruption would.
    """
    tower = model.model.vision_tower
    classes = len(vocabulary()) + 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = torch.nn.Linear(tower.config.hidden_size, classes)
        spot = torch.nn.Linear(tower.config.hidden_size, 2)
    weights = torch.ones(classes)
    weights[-1] = 0.15
    side = int(pool.labels.shape[1] ** 0.5)
    grid = torch.arange(side * side)
    place = torch.stack([grid % side, grid // side], 1) / (side - 1) * 2 - 1

    def draw(plan: Plan, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = step_rng(seed, plan.name, step)
        rows = np.sort(rng.choice(len(pool.facts), batch, replace=False))
        pixels, labels = pool.pixels[rows], pool.labels[rows].astype(np.int64)
        if rng.random() < 0.5:
            pixels = pixels[:, :, ::-1]
            labels = labels.reshape(-1, side, side)[:, :, ::-1].reshape(batch, -1)
        return to_pixel_values(pixels), torch.from_numpy(np.ascontiguousarray(labels))

    def naming(hidden: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
        logits = head(hidden)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weights)
        right = logits.argmax(-1) == target
        objects = target != classes - 1
        return loss, {"objects": float(right[objects].float().mean()), "all": float(right.float().mean())}

    def name_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixel_values, target = draw(plans[0], step)
        return naming(features(model, pixel_values), target)

    def place_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        pixel_values, target = draw(plans[1], step)
        hidden = features(model, pixel_values)
        loss, figures = naming(hidden, target)
        miss = (spot(hidden) - place).square().mean()
        return loss + miss, {**figures, "miss": float(miss.detach())}

    tower.train()
    modules = {"tower": tower, "head": head}
    run(plans[0], [*tower.parameters(), *head.parameters()], modules, name_loss, folder, stop_at)
    modules["spot"] = spot
    trained = [weight for module in modules.values() for weight in module.parameters()]
    run(plans[1], trained, modules, place_loss, folder, stop_at)
    tower.eval()


def features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Returns what the projector reads: (batch, patches, vision width), the class token left out."""
    tower = model.model.vision_tower
    hidden: torch.Tensor = tower(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]
    return hidden


@torch.no_grad()
def cache_features(model: Any, pool: Pool, path: Path, batch: int = 64) -> Array:
    """Runs the vision tower over a pool once and keeps its features as a float16 memory map.

    Returns:
        (scenes, patches, vision width) float16.
    """
    if not path.is_file():
        patches = pool.labels.shape[1]
        shape = (len(pool.facts), patches, int(model.config.vision_config.hidden_size))
        unfinished = path.with_name(f"part-{path.name}")
        stored = np.lib.format.open_memmap(unfinished, "w+", np.float16, shape)
        for start in tqdm(range(0, shape[0], batch), desc=f"features {path.stem}", mininterval=5):
            rows = slice(start, start + batch)
            stored[rows] = features(model, to_pixel_values(pool.pixels[rows])).half().numpy()
        stored.flush()
        unfinished.rename(path)
    kept: Array = np.load(path, mmap_mode="r")
    return kept


# Long because a stage of training is read in one piece: its losses beside its schedule.
def train_projector(
    model: Any,
    cached: Array,
    pool: Pool,
    plan: Plan,
    folder: Path,
    seed: int,
    word_ids: Sequence[int],
    place_ids: Sequence[int],
    batch: int = 32,
    stop_at: int | None = None,
) -> None:
    """Stage 2: a projected patch is its object's word, marked as seen, with a trace of its place.

    The mark, the embedding of the word "visible", is on the patches of objects only. Without it a patch and the word
    it stands for are so alike that attending to the one or to the other tells the language model the same.

    Args:
        model: The toy; its vision tower and embeddings stay as they are.
        cached: Features of the pool.
        pool: The pictures.
        plan: The schedule.
        folder: Where checkpoints are kept.
        seed: Seed of the batches.
        word_ids: Token of each category.
        place_ids: Tokens of left, right, top, bottom and visible.
        batch: Pictures per step.
        stop_at: Stop after this step, as an interruption would.
    """
    projector = model.model.multi_modal_projector
    table = model.get_input_embeddings().weight.detach()
    words, places = table[list(word_ids)], table[list(place_ids)]
    background = len(word_ids)
    side = int(pool.labels.shape[1] ** 0.5)
    grid = torch.arange(side * side)
    right_half, lower_half = (grid % side >= side // 2).long(), (grid // side >= side // 2).long()

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, plan.name, step)
        rows = np.sort(rng.choice(len(pool.facts), batch, replace=False))
        projected = projector(torch.from_numpy(cached[rows]).float())
        target = labels_of(pool, rows)
        objects = target != background
        scores, traces = projected @ words.T, projected @ places.T
        naming = F.cross_entropy(12 * scores[objects], target[objects])
        quiet = scores[~objects].square().mean()
        across = F.cross_entropy(10 * traces[..., :2].flatten(0, 1), right_half.repeat(batch))
        down = F.cross_entropy(10 * traces[..., 2:4].flatten(0, 1), lower_half.repeat(batch))
        mark = (traces[..., 4] - 0.6 * objects.float()).square().mean()
        excess = (projected.norm(dim=-1) - 1.25).relu().square().mean()
        right = (scores.argmax(-1) == target)[objects].float().mean()
        loss = naming + 2 * quiet + across + down + 4 * mark + 4 * excess
        return loss, {
            "objects": float(right),
            "across": float(across.detach()),
            "down": float(down.detach()),
            "mark": float(mark.detach()),
            "norm": float(projected.detach().norm(dim=-1)[objects].mean()),
        }

    run(plan, projector.parameters(), {"projector": projector}, loss_at, folder, stop_at)
