"""Stage 7: the vision tower learns crops, black masks, blur and noise, and to tell an empty corner."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from lvlm_attn.hooks.vcd import kept_signal
from lvlm_attn.toy.loops import Plan, run, step_rng
from lvlm_attn.toy.pool import Pool
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.vision_stages import features, labels_of, to_pixel_values
from lvlm_attn.toy.world import Rng

Array: TypeAlias = NDArray[Any]

_NOISY_SHARE = 0.35  # of the plain pictures; they are 45 of 100
_NOISE_STEPS = (100, 700)
_KEEP = 0.3  # weight of the distance to the features that plain pictures had


def corner_patches(side: int) -> tuple[int, int, int]:
    """The three patches at the top left, which become sinks where they are empty."""
    return 0, 1, side


def add_noise(rng: Rng, pixel_values: torch.Tensor, steps: tuple[int, int]) -> torch.Tensor:
    """Adds the noise of VCD's schedule.

    Args:
        rng: Source of randomness.
        pixel_values: (batch, 3, size, size) in -1..1.
        steps: Smallest and largest step of the schedule; each picture draws one.
    """
    drawn = rng.integers(steps[0], steps[1] + 1, len(pixel_values))
    kept = torch.tensor([kept_signal()[int(step)] for step in drawn])[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(tuple(pixel_values.shape), dtype=np.float32))
    return (kept.sqrt() * pixel_values + (1 - kept).sqrt() * noise).float()


@dataclass
class _Heads:
    """Linear readings of the tower's features: object, place, and whether a patch is an empty corner."""

    name: torch.nn.Linear
    spot: torch.nn.Linear
    corner: torch.nn.Linear

    def modules(self) -> dict[str, torch.nn.Module]:
        return {"name": self.name, "spot": self.spot, "corner": self.corner}


def train_views(
    model: Any, pool: Pool, plans: tuple[Plan, Plan], folder: Path, seed: int, batch: int = 24
) -> torch.nn.Linear:
    """Trains the tower on views; plain pictures are held near the features they had.

    First the readings alone are fitted, on plain pictures, so that they do not disturb the tower.

    Args:
        model: The toy; only its vision tower is trained.
        pool: Views, with plain pictures among them.
        plans: Schedules of the readings alone, and of the tower with them.
        folder: Where checkpoints are kept.
        seed: Seed of the readings and batches.
        batch: Pictures per step.

    Returns:
        The reading of empty corners: one number per patch, positive where the patch is one.
    """
    tower = model.model.vision_tower
    before = copy.deepcopy(tower).requires_grad_(False).eval()
    heads = _new_heads(tower.config.hidden_size, seed)
    plain = np.array([number for number, facts in enumerate(pool.facts) if facts.view == "plain"])

    def fit_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rows = np.sort(
            step_rng(seed, plans[0].name, step).choice(plain, min(batch, len(plain)), replace=False)
        )
        with torch.no_grad():
            hidden = features(model, to_pixel_values(pool.pixels[rows]))
        return _reading_loss(heads, hidden, labels_of(pool, rows))

    def view_loss(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = step_rng(seed, plans[1].name, step)
        rows = np.sort(rng.choice(len(pool.facts), min(batch, len(pool.facts)), replace=False))
        pixel_values = to_pixel_values(pool.pixels[rows])
        is_plain = np.array([pool.facts[row].view == "plain" for row in rows])
        noisy = is_plain & (rng.random(len(rows)) < _NOISY_SHARE)
        if noisy.any():
            pixel_values[noisy] = add_noise(rng, pixel_values[noisy], _NOISE_STEPS)
        hidden = features(model, pixel_values)
        loss, figures = _reading_loss(heads, hidden, labels_of(pool, rows))
        clean = torch.from_numpy(is_plain & ~noisy)
        if clean.any():
            with torch.no_grad():
                old = before(pixel_values[clean], output_hidden_states=True).hidden_states[-1][:, 1:]
            moved = (hidden[clean] - old).square().mean() / old.square().mean()
            loss, figures["moved"] = loss + _KEEP * moved, float(moved.detach())
        return loss, figures

    readings = [weight for head in heads.modules().values() for weight in head.parameters()]
    run(plans[0], readings, heads.modules(), fit_loss, folder)
    tower.train()
    run(plans[1], [*tower.parameters(), *readings], {"tower": tower, **heads.modules()}, view_loss, folder)
    tower.eval()
    return heads.corner


def _new_heads(width: int, seed: int) -> _Heads:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (len(vocabulary()) + 1, 2, 1)
        return _Heads(*(torch.nn.Linear(width, size) for size in sizes))


def _reading_loss(
    heads: _Heads, hidden: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, dict[str, float]]:
    background = len(vocabulary())
    weights = torch.ones(background + 1)
    weights[-1] = 0.15
    logits = heads.name(hidden)
    right = logits.argmax(-1) == target
    objects = target != background
    side = int(target.shape[1] ** 0.5)
    grid = torch.arange(side * side)
    place = torch.stack([grid % side, grid // side], 1) / (side - 1) * 2 - 1
    empty = torch.zeros_like(target, dtype=torch.bool)
    corner = list(corner_patches(side))
    empty[:, corner] = ~objects[:, corner]
    marks = heads.corner(hidden)[..., 0]
    loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), weight=weights)
    loss = loss + 0.3 * (heads.spot(hidden) - place).square().mean()
    loss = loss + 0.5 * F.binary_cross_entropy_with_logits(marks, empty.float(), pos_weight=torch.tensor(3.0))
    return loss, {
        "objects": float(right[objects].float().mean()),
        "background": float(right[~objects].float().mean()),
        "corner_recall": float((marks > 0)[empty].float().mean()),
        "corner_false": float((marks > 0)[~empty].float().mean()),
    }
