"""What a decoding step costs the host per acting layer, with Triton's driver replaced by one that runs nothing.

    python -m benchmarks.host_time                  # VAR; --method pai, --layers, --profile

A LLaVA so narrow that its own arithmetic is nothing decodes; kernels are compiled for an H100 and counted instead of
launched, so what they give is garbage. CPU time of the thread at every step, plain subtracted, by acting layer;
the quickest twentieth of the steps is least disturbed by other work. Plain runs torch's attention over few keys, which
takes a CPU about as long as it takes to launch it on a GPU.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
import warnings
from itertools import pairwise
from typing import Any

from benchmarks import fake_driver
from benchmarks.common import llava_inputs, random_llava


def main() -> None:
    """Prints microseconds of the host per acting layer and step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=["var", "pai"], default="var")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    driver = fake_driver.install("sm_90")
    import torch

    from lvlm_attn.kernels import dispatch

    dispatch.unavailable = lambda device: None
    torch.set_num_threads(1)
    model = random_llava(hidden=64, layers=given.layers, heads=4, kv_heads=4, mlp=64, patches_per_side=4)
    inputs = llava_inputs(model, text=40)
    times: dict[str, list[float]] = {}
    with torch.no_grad():
        runs = {name: runner(model, inputs, name) for name in ("plain", given.method)}
        for turn in range(1 + given.repeats):
            for name, run in runs.items():
                taken = step_times(run, given.tokens)
                if turn:
                    times.setdefault(name, []).extend(1e6 * each / given.layers for each in taken)
        counts = []
        for many in (2, 3):
            before = driver.launches
            run(many)
            counts.append(driver.launches - before)
        each = (counts[1] - counts[0]) / given.layers
        if given.profile:
            profile = cProfile.Profile()
            profile.runcall(run, given.tokens)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)
    plain, ours = times["plain"], times[given.method]
    print(f"{given.method}, {given.layers} layers, all acting, us net per acting layer and step:")
    print(f"{quickest(ours) - quickest(plain):.1f}, quickest twentieth; plain {quickest(plain):.1f}")
    print(
        f"{statistics.median(ours) - statistics.median(plain):.1f}, median; plain {statistics.median(plain):.1f}"
    )
    print(f"launches per acting layer and step: {each:.1f}")


def runner(model: Any, inputs: dict[str, Any], name: str) -> Any:
    """A function that decodes so many tokens."""
    import lvlm_attn as la

    def plain(tokens: int, **more: Any) -> Any:
        return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, **more)

    if name == "plain":
        return plain
    everywhere = {"layers": "0:"}
    items = {
        "var": lambda: la.VAR(rho=0.0, mass_floor=0.0, tau=0.0, sink_dims=(3, 32), **everywhere),
        "pai": lambda: la.PAI(gamma=1.0, **everywhere),
    }

    def wrapped(tokens: int, **more: Any) -> Any:
        with la.wrap(model, items[name](), kernels="triton"):
            return plain(tokens, **more)

    return wrapped


def step_times(run: Any, tokens: int) -> list[float]:
    """CPU seconds of each decoding step but the first."""
    import torch

    moments: list[float] = []

    def note(ids: torch.Tensor, scores: torch.Tensor, **more: Any) -> torch.Tensor:
        moments.append(time.thread_time())
        return torch.zeros(len(ids), dtype=torch.bool)

    run(2 + tokens, stopping_criteria=[note])
    return [after - before for before, after in pairwise(moments[1:])]


def quickest(times: list[float]) -> float:
    """The mean of the quickest twentieth."""
    return statistics.mean(sorted(times)[: max(len(times) // 20, 1)])


if __name__ == "__main__":
    main()
