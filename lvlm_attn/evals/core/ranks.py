"""Several processes at one evaluation, as `torchrun` and `accelerate launch` start them.

Nothing but short messages goes between them, over gloo, whatever the devices: who may begin, and who has finished.
Answers travel through files, one per rank, so that a rank that is lost takes nothing of the others with it.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lvlm_attn.errors import LvlmAttnError

T = TypeVar("T")
_PATIENCE = timedelta(days=7)
_NEEDED = ("MASTER_ADDR", "MASTER_PORT")
_NAMES = {
    "RANK": ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"),
    "WORLD_SIZE": ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"),
    "LOCAL_RANK": (
        "LOCAL_RANK",
        "MPI_LOCALRANKID",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_RANK",
    ),
}
"""What `torchrun` sets, and what `mpirun` does, which `accelerate launch` uses on CPUs."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that share an evaluation.

    Attributes:
        rank: which one it is, from 0.
        count: how many there are.
        group: the process group they talk over; None for one alone.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @staticmethod
    def of_environment() -> Ranks:
        """Reads what `torchrun` or `accelerate launch` set, and joins their process group.

        Raises:
            LvlmAttnError: the environment speaks of several ranks, but no process group can be had.
        """
        count, rank = _number("WORLD_SIZE") or 1, _number("RANK") or 0
        if count == 1 and rank == 0:
            return Ranks()
        missing = [key for key in _NEEDED if not os.environ.get(key)]
        missing += ["RANK"] if _number("RANK") is None else []
        if missing or not 0 <= rank < count:
            reason = f"{', '.join(missing)} not set" if missing else "no such rank"
            raise LvlmAttnError(
                f"this is rank {rank} of {count}, but there is no process group ({reason}); start with "
                f"`torchrun --nproc-per-node {max(count, 2)} -m lvlm_attn ...`, or unset RANK and WORLD_SIZE."
            )
        return Ranks(rank, count, _group(rank, count))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints what all of them found."""
        return self.rank == 0

    def first(self, action: Callable[[], T]) -> T | None:
        """Lets rank 0 act while the others wait; an error of its becomes an error of all.

        Returns:
            What `action` returned, on rank 0; None on the others.
        """
        if self.count == 1:
            return action()
        found: T | None = None
        told: list[str | None] = [None]
        failure: Exception | None = None
        if self.is_first:
            try:
                found = action()
            except Exception as error:
                failure, told = error, [str(error) or type(error).__name__]
        import torch.distributed as dist

        self._talk(lambda: dist.broadcast_object_list(told, src=0, group=self.group))
        if failure is not None:
            raise failure
        if told[0] is not None:
            raise LvlmAttnError(told[0])
        return found

    def tell(self, text: str | None) -> str:
        """What rank 0 says, on all ranks; what the others give is not looked at."""
        told = [text]
        if self.count > 1:
            import torch.distributed as dist

            self._talk(lambda: dist.broadcast_object_list(told, src=0, group=self.group))
        return told[0] or ""

    def wait(self) -> None:
        """Waits until all ranks are here."""
        if self.count > 1:
            import torch.distributed as dist

            self._talk(lambda: dist.barrier(group=self.group))

    def _talk(self, message: Callable[[], Any]) -> None:
        try:
            message()
        except RuntimeError as error:
            raise LvlmAttnError(
                f"rank {self.rank} of {self.count} lost contact with another one; all that was answered is kept: run "
                "the same command again to go on."
            ) from error


def process_rank() -> tuple[int, int]:
    """Rank and number of processes as the environment tells them; nothing is joined."""
    return (_number("RANK") or 0, _number("WORLD_SIZE") or 1)


def local_device(kind: str) -> str:
    """The GPU of this process on its machine, `cuda:1` for the second; other devices have no numbers."""
    local = _number("LOCAL_RANK")
    if kind != "cuda" or local is None or process_rank()[1] == 1:
        return kind
    import torch

    return f"cuda:{local % max(torch.cuda.device_count(), 1)}"


def _number(key: str) -> int | None:
    for name in _NAMES[key]:
        text = os.environ.get(name, "").strip()
        if text and not text.lstrip("-").isdigit():
            raise LvlmAttnError(f"the environment variable {name} is {text!r}; it must be a whole number.")
        if text:
            return int(text)
    return None


def _group(rank: int, count: int) -> Any:
    import torch.distributed as dist

    global _own
    if not dist.is_available():
        raise LvlmAttnError("this build of torch knows no process groups; run a single process.")
    if dist.is_initialized():
        # An application's own group may be one of GPUs, which does not carry messages of the CPU.
        if _own is None:
            _own = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return _own
    _die_with_parent()
    try:
        dist.init_process_group("gloo", timeout=_PATIENCE, rank=rank, world_size=count)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LvlmAttnError(
            f"rank {rank} of {count} could not join its process group ({reason}); "
            "start all ranks with one `torchrun` or `accelerate launch`."
        ) from error
    atexit.register(_leave)
    _own = dist.group.WORLD
    return _own


_own: Any = None


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _die_with_parent() -> None:
    """A rank whose launcher is killed must not go on writing beside the next attempt (Linux)."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
