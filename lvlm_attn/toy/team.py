"""Processes that train together: each computes its part of every step, and all take the same step.

The parts add up to what one process computes, whatever the number of processes. Within a step they wait for each
other only where gradients, and the sums that a loss depends on, are added up.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError

_SAID = "said"  # file in the team's folder that holds what one of them gave up with
_T = TypeVar("_T")
_PATIENCE = timedelta(days=2)  # members wait as long as the first one draws pictures or trains the tower


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees it.

    Attributes:
        rank: Number of this process, from 0; the first one writes checkpoints and logs.
        size: How many there are.
        threads: CPU threads of them all.
    """

    rank: int = 0
    size: int = 1
    threads: int = 1

    def part(self, count: int) -> slice:
        """Which of ``count`` items are this process's; parts differ by one item at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first process does what is in the block, with all threads; then the others, who find it done on disk."""
        if self.size == 1:
            yield
            return
        own = torch.get_num_threads()
        if self.rank:
            self.wait()
        else:
            torch.set_num_threads(max(1, self.threads))
        yield
        torch.set_num_threads(own)
        if not self.rank:
            self.wait()

    def follow(self, weights: Sequence[Tensor]) -> None:
        """Gives all processes the first one's weights."""
        if self.size == 1:
            return
        with torch.no_grad():
            for weight in weights:
                torch.distributed.broadcast(weight, src=0)

    def add_up(self, weights: Sequence[Tensor], figures: Mapping[str, float]) -> dict[str, float]:
        """Adds up the gradients of all processes in place, and their figures.

        Args:
            weights: The parameters; one that has a gradient in no process is left without.
            figures: What to add up besides, under the same names in every process.

        Returns:
            The sums of the figures.
        """
        if self.size == 1:
            return dict(figures)
        gradients = [torch.zeros_like(item) if item.grad is None else item.grad for item in weights]
        is_there = torch.tensor([float(item.grad is not None) for item in weights])
        parts = [*(item.flatten() for item in gradients), is_there, torch.tensor(list(figures.values()))]
        flat = torch.cat(parts)
        torch.distributed.all_reduce(flat)
        *found, is_there, sums = torch.split(flat, [len(item) for item in parts])
        for weight, gradient, count in zip(weights, found, is_there.tolist()):
            weight.grad = gradient.view_as(weight) if count else None
        return dict(zip(figures, sums.tolist()))

    def total(self, part: Tensor) -> Tensor:
        """The sum over all processes of a part; gradients flow to this process's part alone.

        Any function of totals has the right value in every process, and gradients that add up to the right ones.
        """
        if self.size == 1:
            return part
        found = part.detach().clone()
        torch.distributed.all_reduce(found)
        return part + (found - part.detach())

    def as_part(self, value: Tensor) -> Tensor:
        """What a member adds of a value that all of them computed from totals: the value's share, the same gradient."""
        return value - value.detach() * (1 - 1 / self.size) if self.size > 1 else value

    def told(self, value: _T) -> _T:
        """The first process's value, in all processes."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]


#: One process.
ALONE = Team()


def work_together(function: Callable[..., None], arguments: tuple[Any, ...], size: int, threads: int) -> None:
    """Calls ``function(team, *arguments)`` in several new processes, and returns when all are done.

    Args:
        function: A function of a module.
        arguments: What pickle can carry.
        size: How many processes.
        threads: CPU threads of them all.

    Raises:
        LvlmAttnError: What one of them raised.
    """
    from torch.multiprocessing.spawn import (
        ProcessExitedException,
        ProcessRaisedException,
        start_processes,
    )

    with tempfile.TemporaryDirectory(prefix="toy-team-") as folder:
        try:
            start_processes(  # type: ignore[no-untyped-call]
                _member, (function, arguments, size, threads, folder), nprocs=size, start_method="spawn"
            )
        except (ProcessExitedException, ProcessRaisedException):
            said = Path(folder) / _SAID  # the others may have failed first, for want of the one that gave up
            if said.is_file():
                raise LvlmAttnError(said.read_text()) from None
            raise


def _member(
    rank: int, function: Callable[..., None], arguments: tuple[Any, ...], size: int, threads: int, folder: str
) -> None:
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(max(1, threads // size))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/members", rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        function(Team(rank, size, threads), *arguments)
    except LvlmAttnError as error:
        (Path(folder) / _SAID).write_text(str(error))
        raise
    torch.distributed.destroy_process_group()
