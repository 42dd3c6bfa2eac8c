"""Evaluations of the toy's POPE: batches against single prompts, and two processes against one.

    OMP_NUM_THREADS=1 python -m benchmarks.batching
    python -m benchmarks.batching --processes 2

The first times `la.evaluate` in this process, pictures ready and the model loaded, at batch 1 and at a larger one in
turn, and what of its time passes outside `model.generate`. The second times whole commands, start included, on one
thread per process, and the same commands on folders that are finished already, which is their start. Either stops with
an error if the metrics of two runs differ in one byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import median_interval, save


@contextmanager
def timed_generate(model: Any, seconds: list[float]) -> Iterator[None]:
    """Adds up the time inside `model.generate`, which an evaluation calls once per batch."""
    inner = model.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        try:
            return inner(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - begin)

    vars(model)["generate"] = generate
    try:
        yield
    finally:
        del vars(model)["generate"]


def batches(scenes: int, batch: int, repeats: int, method: str) -> dict[str, Any]:
    """Samples per second at batch 1 and `batch`, interleaved."""
    import torch

    import lvlm_attn as la
    from lvlm_attn.toy.benchmarks import toy_pope

    model, processor = la.load("toy")
    pope, interventions = toy_pope("dev", scenes), la.parse(method) if method else ()
    metrics: set[bytes] = set()

    def run(size: int) -> tuple[float, float]:
        inside: list[float] = []
        with tempfile.TemporaryDirectory() as folder, timed_generate(model, inside):
            begin = time.perf_counter()
            done = la.evaluate(
                model, processor, pope, interventions, out=Path(folder) / "run", batch_size=size
            )
            whole = time.perf_counter() - begin
            metrics.add((done.folder / "metrics.json").read_bytes())
        return whole, 1 - sum(inside) / whole

    for size in (1, batch):
        run(size)  # warm
    rates: dict[int, list[float]] = {1: [], batch: []}
    outside: dict[int, list[float]] = {1: [], batch: []}
    count = len(pope.samples())
    for turn in range(repeats):
        for size in (1, batch) if turn % 2 else (batch, 1):
            whole, share = run(size)
            rates[size].append(count / whole)
            outside[size].append(share)
        print(f"round {turn + 1}: {rates[batch][-1] / rates[1][-1]:.2f}", flush=True)
    need_same(metrics)
    ratio, low, high = median_interval([many / one for many, one in zip(rates[batch], rates[1])])
    print(f"{count} questions about {scenes} scenes, {torch.get_num_threads()} threads, {method or 'bare'}")
    for size, found in rates.items():
        print(
            f"batch {size:3}: {statistics.median(found):6.1f} samples/s, "
            f"{100 * statistics.median(outside[size]):.1f} % of the time outside generate"
        )
    print(f"batch {batch} is {ratio:.2f} times as fast as batch 1 (95 % interval {low:.2f} to {high:.2f})")
    return {"ratio": ratio, "ratio_95": [low, high], "samples_per_s": rates, "outside_generate": outside}


def processes(count: int, scenes: int, batch: int, repeats: int, method: str) -> dict[str, Any]:
    """Seconds of `lvlm-attn eval pope` with one process and with several, interleaved."""
    launchers = {
        1: ["-m", "lvlm_attn"],
        count: [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(count),
            "-m",
            "lvlm_attn",
        ],
    }
    seconds: dict[int, list[float]] = {1: [], count: []}
    starts: dict[int, list[float]] = {1: [], count: []}
    metrics: set[bytes] = set()
    for turn in range(repeats):
        for number in (1, count) if turn % 2 else (count, 1):
            with tempfile.TemporaryDirectory() as folder:
                command = [
                    sys.executable, *launchers[number], "eval", "pope", "--model", "toy", "--data", "toy",
                    "--split", "dev", "--scenes", str(scenes), "--batch-size", str(batch), "--out", f"{folder}/run",
                    *(["--intervene", method] if method else []),
                ]  # fmt: skip
                for kept in (seconds, starts):
                    begin = time.perf_counter()
                    subprocess.run(
                        command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
                    )
                    kept[number].append(time.perf_counter() - begin)
                metrics.add(Path(folder, "run/metrics.json").read_bytes())
        print(f"round {turn + 1}: {seconds[1][-1] / seconds[count][-1]:.2f}", flush=True)
    need_same(metrics)
    whole, low, high = median_interval([one / many for one, many in zip(seconds[1], seconds[count])])
    asking = {
        number: statistics.median(seconds[number]) - statistics.median(starts[number]) for number in seconds
    }
    for number in seconds:
        print(
            f"{number} process(es): {statistics.median(seconds[number]):.1f} s, of which "
            f"{statistics.median(starts[number]):.1f} s are its start and its scores"
        )
    print(
        f"{count} processes are {whole:.2f} times as fast (95 % interval {low:.2f} to {high:.2f}), "
        f"{asking[1] / asking[count]:.2f} times without the start"
    )
    return {"ratio": whole, "ratio_95": [low, high], "seconds": seconds, "start_seconds": starts}


def need_same(metrics: set[bytes]) -> None:
    if len(metrics) > 1:
        raise SystemExit(f"metrics.json has {len(metrics)} different contents; all runs should agree.")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batching", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--scenes", type=int, help="scenes; 30, or 250 with --processes")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--intervene", default="", help="methods, such as vhr; none is the bare model")
    parser.add_argument("--processes", type=int, help="time so many processes against one instead")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/batching*.json")
    options = parser.parse_args()
    if options.processes:
        name, scenes = "batching_processes", options.scenes or 250
        found = processes(options.processes, scenes, options.batch, options.repeats, options.intervene)
    else:
        name, scenes = "batching", options.scenes or 30
        found = batches(scenes, options.batch, options.repeats, options.intervene)
    if options.save:
        print(
            save(name, {"scenes": scenes, "batch": options.batch, "method": options.intervene, **found}),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
