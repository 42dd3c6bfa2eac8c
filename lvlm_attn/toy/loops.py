"""What all training stages share: the schedule, batches that depend on the step alone, and checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.toy.team import ALONE, Team


@dataclass(frozen=True)
class Plan:
    """How one stage is trained.

    Attributes:
        name: Name of the stage, and of its checkpoint.
        steps: Optimizer steps.
        rate: Highest learning rate.
        warmup: Steps over which the rate rises.
        decay: Share of the steps, at the end, over which the rate falls linearly to a twentieth.
        clip: Largest gradient norm.
        weight_decay: AdamW's weight decay.
        every: Steps between checkpoints.
    """

    name: str
    steps: int
    rate: float
    warmup: int = 100
    decay: float = 0.7
    clip: float = 1.0
    weight_decay: float = 0.01
    every: int = 200


def rate_at(plan: Plan, step: int) -> float:
    """Returns the learning rate of a step.

    Example:
        >>> rate_at(Plan("x", steps=100, rate=1.0, warmup=10, decay=0.5), 4)
        0.5
    """
    if step < plan.warmup:
        return plan.rate * (step + 1) / plan.warmup
    falling = plan.steps * plan.decay
    left = (plan.steps - step) / max(falling, 1.0)
    return plan.rate * max(0.05, min(1.0, left))


def step_rng(seed: int, stage: str, step: int) -> np.random.Generator:
    """Returns the randomness of one step: the same whether or not the run was interrupted before it."""
    return np.random.default_rng([seed, *stage.encode(), step])


def run(
    plan: Plan,
    parameters: Iterable[torch.nn.Parameter],
    modules: dict[str, torch.nn.Module],
    loss_at: Callable[[int], tuple[torch.Tensor, dict[str, float]]],
    folder: Path,
    stop_at: int | None = None,
    team: Team = ALONE,
) -> None:
    """Trains, from the last checkpoint if there is one, and leaves the modules trained.

    Args:
        plan: The schedule.
        parameters: What to train.
        modules: What a checkpoint holds.
        loss_at: Gives the loss of a step and figures to show; of a team, what its member adds to them.
        folder: Where the checkpoint ``<plan.name>.pt`` and the log ``<plan.name>.log`` are kept.
        stop_at: Stop after this step, as an interruption would.
        team: The processes that train together.

    Raises:
        LvlmAttnError: The loss is not finite.
    """
    weights = [weight for weight in parameters if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    path = folder / f"{plan.name}.pt"
    team.wait()
    first = _resume(path, modules, optimizer)
    team.follow(weights)
    last = plan.steps if stop_at is None else min(plan.steps, stop_at)
    shown: dict[str, float] = {}
    with tqdm(total=plan.steps, initial=first, desc=plan.name, mininterval=5, disable=team.rank > 0) as bar:
        for step in range(first, last):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(plan, step)
            loss, figures = loss_at(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            figures = team.add_up(weights, {"loss": float(loss.detach()), **figures})
            if not math.isfinite(figures["loss"]):
                raise LvlmAttnError(
                    f"Stage {plan.name!r} lost its way: the loss of step {step} is {figures['loss']}."
                )
            torch.nn.utils.clip_grad_norm_(weights, plan.clip)
            optimizer.step()
            for key, value in figures.items():
                shown[key] = value if key not in shown else 0.95 * shown[key] + 0.05 * value
            bar.set_postfix({key: f"{value:.3f}" for key, value in shown.items()}, refresh=False)
            bar.update()
            if team.rank == 0 and ((step + 1) % plan.every == 0 or step + 1 == last):
                _save(path, modules, optimizer, step + 1)
                _log(folder / f"{plan.name}.log", step + 1, shown)


def is_done(plan: Plan, folder: Path) -> bool:
    """Whether a stage's checkpoint holds its last step."""
    path = folder / f"{plan.name}.pt"
    return path.is_file() and int(torch.load(path, weights_only=True)["step"]) >= plan.steps


def _resume(path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    saved = torch.load(path, weights_only=True)
    for key, module in modules.items():
        module.load_state_dict(saved["modules"][key])
    optimizer.load_state_dict(saved["optimizer"])
    return int(saved["step"])


def _save(
    path: Path, modules: dict[str, torch.nn.Module], optimizer: torch.optim.Optimizer, step: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {key: module.state_dict() for key, module in modules.items()}
    unfinished = path.with_suffix(".part")
    torch.save({"modules": state, "optimizer": optimizer.state_dict(), "step": step}, unfinished)
    os.replace(unfinished, path)


def _log(path: Path, step: int, shown: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(f"{step} " + " ".join(f"{key}={value:.4f}" for key, value in shown.items()) + "\n")
