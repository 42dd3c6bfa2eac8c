"""What the GPU benchmarks share: timing with a cold cache, peak memory, rooflines, and a stand-in without a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

# Dense 16-bit tensor throughput in FLOP/s and memory bandwidth in byte/s, from NVIDIA's data sheets.
PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.039e12),
}
FLUSH_BYTES = 2**30
"""Read between two timings: more than any L2 cache holds, and long enough to hide the next launch. What is read need
not be written back, so what is timed does not pay for it."""
MINUTES = 7.0
"""A part begins nothing new after so long: it has 8 minutes."""
FAILING = (torch.OutOfMemoryError, RuntimeError)
"""What may happen to what is compared with, and is told instead of a time."""


@dataclass
class Machine:
    """Where the benchmarks run.

    Attributes:
        device: `cuda`, or `cpu` with Triton's interpreter, which says nothing about speed.
        kernels: which path is ours on this machine.
    """

    device: torch.device
    kernels: str = "auto"
    _flush: torch.Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of(device: str) -> Machine:
        """The GPU, or the interpreter."""
        if device == "cuda":
            if not torch.cuda.is_available():
                raise SystemExit(
                    "No CUDA device was found; --device cpu-interpret runs the same code at tiny sizes."
                )
            return Machine(torch.device("cuda"))
        return Machine(torch.device("cpu"), "triton")

    @property
    def is_gpu(self) -> bool:
        """Whether the numbers mean anything."""
        return self.device.type == "cuda"

    def dtype(self, name: str) -> torch.dtype:
        """A type, or fp32 in the interpreter."""
        found = getattr(torch, name) if self.is_gpu else torch.float32
        assert isinstance(found, torch.dtype)
        return found

    def about(self) -> dict[str, Any]:
        """The card, and the versions of what runs on it."""
        if not self.is_gpu:
            return {"card": None}
        properties = torch.cuda.get_device_properties(self.device)
        return {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "processors": properties.multi_processor_count,
            "memory_gib": properties.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }

    def wait(self) -> None:
        """Waits for the device."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def time(self, run: Callable[[], Any]) -> tuple[float, float]:
        """Milliseconds on the device with a cold cache, and milliseconds until the call returned."""
        if not self.is_gpu:
            begin = time.perf_counter()
            run()
            taken = 1e3 * (time.perf_counter() - begin)
            return taken, taken
        if self._flush is None:
            self._flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.float32, device=self.device)
        event: Any = torch.cuda.Event
        first, last = event(enable_timing=True), event(enable_timing=True)
        self.wait()
        self._flush.sum()
        first.record()
        begin = time.perf_counter()
        run()
        host = 1e3 * (time.perf_counter() - begin)
        last.record()
        self.wait()
        return float(first.elapsed_time(last)), host

    def peak(self, run: Callable[[], Any]) -> float | None:
        """Peak memory in MiB while `run` runs, beyond what was held before; None without a GPU."""
        if not self.is_gpu:
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        self.wait()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def roofline(self, milliseconds: float, flops: float = 0.0, moved: float = 0.0) -> float | None:
        """The least time that arithmetic and memory allow, in percent of the time taken."""
        name = torch.cuda.get_device_name() if self.is_gpu else ""
        found = next(
            (peaks for key, peaks in PEAKS.items() if all(part in name for part in key.split())), None
        )
        if found is None:
            return None
        return 100 * max(flops / found[0], moved / found[1]) / (1e-3 * milliseconds)


class Clock:
    """The time that a part has."""

    def __init__(self, minutes: float = MINUTES) -> None:
        self._end = time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Whether nothing new is to be begun."""
        return time.monotonic() > self._end


def compare(
    machine: Machine,
    variants: Mapping[str, Callable[[int], Any]],
    base: Sequence[str],
    repeats: int,
    inputs: int,
) -> list[dict[str, Any]]:
    """Times variants in turn, each round with the next of `inputs` inputs and beginning with another variant.

    A variant that runs out of memory, or that this machine refuses, is told. Ratios are between medians.

    Args:
        machine: where.
        variants: functions of the number of an input.
        base: what ratios are to the fastest of.
        repeats: rounds.
        inputs: how many there are.

    Returns:
        A row per variant: its milliseconds, ratio, milliseconds the host was busy, peak memory.
    """
    rows: dict[str, dict[str, Any]] = {name: {"variant": name} for name in variants}
    for name, run in variants.items():
        try:
            for index in range(inputs):
                run(index)
            rows[name]["peak_mib"] = machine.peak(partial(run, 0))
        except FAILING as error:
            is_memory = isinstance(error, torch.OutOfMemoryError)
            rows[name]["failed"] = "out of memory" if is_memory else str(error).splitlines()[0][:200]
        if machine.is_gpu:
            torch.cuda.empty_cache()
    names = [name for name in variants if "failed" not in rows[name]]
    device: dict[str, list[float]] = {name: [] for name in names}
    host: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % max(len(names), 1)
        for name in names[shift:] + names[:shift]:
            taken, busy = machine.time(partial(variants[name], turn % inputs))
            device[name].append(taken)
            host[name].append(busy)
    fastest = min((statistics.median(device[name]) for name in base if name in device), default=None)
    for name in names:
        middle = statistics.median(device[name])
        rows[name] |= {
            "ms": middle,
            "spread_ms": [min(device[name]), max(device[name])],
            "host_ms": statistics.median(host[name]),
            "ratio": None if fastest is None else middle / fastest,
        }
    return list(rows.values())


def error_of(found: torch.Tensor, truth: torch.Tensor) -> float:
    """The error of a result as a ratio of norms; infinite if it holds anything but numbers."""
    error = float((found.double() - truth).norm() / truth.norm())
    return error if error == error else float("inf")


def check(name: str, error: float, bound: float) -> None:
    """Stops the benchmark where a result is wrong.

    Raises:
        SystemExit: if the error is above the bound, or not a number.
    """
    if not error <= bound:
        raise SystemExit(f"{name} differs from float64 by {error:.2e}, more than {bound:.2e}")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one comparison."""
    print(title, flush=True)
    for row in rows:
        if "failed" in row:
            print(f"  {row['variant']:32} {row['failed']}", flush=True)
            continue
        ratio = "" if row.get("ratio") is None else f"{row['ratio']:7.3f}x"
        host = "" if row.get("host_ms") is None else f"{row['host_ms']:8.3f} ms host"
        memory = "" if row.get("peak_mib") is None else f"{row['peak_mib']:9.0f} MiB"
        roof = "" if row.get("roofline_percent") is None else f"{row['roofline_percent']:5.0f} % of roofline"
        print(f"  {row['variant']:32} {row['ms']:10.3f} ms {ratio} {host} {memory} {roof}", flush=True)
