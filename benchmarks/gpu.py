"""What the GPU benchmarks share: timing with a cold cache, peak memory, rooflines, and a stand-in without a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

# Dense bf16 tensor throughput in FLOP/s and memory bandwidth in byte/s, from NVIDIA's data sheets.
PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100": (989e12, 3.35e12),
    "A100": (312e12, 2.039e12),
}
FLUSH_BYTES = 2**30
"""Written between two timings: more than any L2 cache holds, and long enough to hide the next launch."""


@dataclass
class Machine:
    """Where the benchmarks run.

    Attributes:
        device: `cuda`, or `cpu` with Triton's interpreter, which says nothing about speed.
        dtype: of queries, keys and values.
        bound: largest error against float64, as a ratio of norms.
    """

    device: torch.device
    dtype: torch.dtype
    bound: float
    _flush: torch.Tensor | None = field(default=None, repr=False)

    @staticmethod
    def of(device: str) -> Machine:
        """The GPU in bf16, or the interpreter in fp32."""
        if device == "cuda":
            if not torch.cuda.is_available():
                raise SystemExit(
                    "No CUDA device was found; --device cpu-interpret runs the same code at tiny sizes."
                )
            return Machine(torch.device("cuda"), torch.bfloat16, 2 * torch.finfo(torch.bfloat16).eps)
        return Machine(torch.device("cpu"), torch.float32, 1e-5)

    @property
    def is_gpu(self) -> bool:
        """Whether the numbers mean anything."""
        return self.device.type == "cuda"

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
            self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
        event: Any = torch.cuda.Event
        first, last = event(enable_timing=True), event(enable_timing=True)
        self.wait()
        self._flush.zero_()
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


def compare(
    machine: Machine, variants: Mapping[str, Callable[[int], Any]], base: str, repeats: int, inputs: int
) -> list[dict[str, Any]]:
    """Times variants in turn, each round with the next of `inputs` inputs and beginning with another variant.

    A variant that runs out of memory is reported so. Ratios are between medians.

    Returns:
        A row per variant: its milliseconds, ratio to `base`, milliseconds the host was busy, peak memory.
    """
    rows: dict[str, dict[str, Any]] = {name: {"variant": name} for name in variants}
    for name, run in variants.items():
        try:
            for index in range(inputs):
                run(index)
            rows[name]["peak_mib"] = machine.peak(partial(run, 0))
        except torch.OutOfMemoryError:
            rows[name]["out_of_memory"] = True
        if machine.is_gpu:
            torch.cuda.empty_cache()
    names = [name for name in variants if "out_of_memory" not in rows[name]]
    device: dict[str, list[float]] = {name: [] for name in names}
    host: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken, busy = machine.time(partial(variants[name], turn % inputs))
            device[name].append(taken)
            host[name].append(busy)
    for name in names:
        middle = statistics.median(device[name])
        rows[name] |= {
            "ms": middle,
            "spread_ms": [min(device[name]), max(device[name])],
            "host_ms": statistics.median(host[name]),
            "ratio": middle / statistics.median(device[base]),
        }
    return list(rows.values())


def check(machine: Machine, name: str, found: torch.Tensor, truth: torch.Tensor) -> float:
    """The error of a result as a ratio of norms.

    Raises:
        SystemExit: if it is above the bound of the machine's type, or not a number.
    """
    error = float((found.double() - truth).norm() / truth.norm())
    if not error < machine.bound:
        raise SystemExit(f"{name} differs from float64 by {error:.2e}, more than {machine.bound:.2e}")
    return error


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one comparison."""
    print(title, flush=True)
    for row in rows:
        if row.get("out_of_memory"):
            print(f"  {row['variant']:28} out of memory", flush=True)
            continue
        memory = "" if row.get("peak_mib") is None else f"{row['peak_mib']:9.0f} MiB"
        roof = "" if row.get("roofline_percent") is None else f"{row['roofline_percent']:5.0f} % of roofline"
        print(f"  {row['variant']:28} {row['ms']:10.3f} ms {row['ratio']:7.2f}x {memory} {roof}", flush=True)
