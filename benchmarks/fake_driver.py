"""A Triton driver of a GPU that is not there: kernels are compiled for it, launches are counted and not run.

Everything Triton does on the host before a launch is done as on a GPU. The launch itself is a call of Python that
counts; the driver's own, a few microseconds, is not in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "cdna": GPUTarget("hip", "gfx942", 64),
}


class FakeDriver:
    """What Triton asks of a driver.

    Attributes:
        target: the GPU.
        launches: how many launches there were.
        watch: called with what is launched, if given.
    """

    def __init__(self, chip: str):
        self.target = TARGETS[chip]
        self.launches = 0
        self.watch: Callable[..., object] | None = None
        self.utils = _Utils()

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """The GPU."""
        return self.target

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Makes what launches a kernel."""

        def launch(*given: Any) -> None:
            self.launches += 1
            if self.watch is not None:
                self.watch(*given)

        return launch


class _Utils:
    def load_binary(self, *given: Any) -> tuple[int, int, int, int, int]:
        """A module, a function, registers, spills, and threads there may be."""
        return 1, 1, 0, 0, 1024

    def unload_module(self, module: int) -> None:
        """Nothing was loaded."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Room enough."""
        return {"max_shared_mem": 2**20, "multiprocessor_count": 132}


def install(chip: str) -> FakeDriver:
    """Makes Triton take a GPU for the one that is there; for a process of its own."""
    driver = FakeDriver(chip)
    triton.runtime.driver.set_active(driver)
    return driver
