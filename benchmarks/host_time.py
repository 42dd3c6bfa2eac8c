"""What a decoding step costs the host per acting layer, with Triton's driver replaced by one that runs nothing.

    python -m benchmarks.host_time                  # VAR; --method pai, --layers, --profile

A LLaVA so narrow that its own arithmetic is nothing decodes; kernels are compiled for an H100 and counted instead of
launched, so what they give is garbage. CPU time of the process, plain subtracted, by acting layer and step. Plain runs
torch's attention on the CPU here, where on a GPU it would launch it; what `attend` itself takes is printed beside.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
import warnings
from typing import Any

from benchmarks import fake_driver
from benchmarks.common import llava_inputs, random_llava


def main() -> None:
    """Prints microseconds of the host per acting layer and step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", choices=["var", "pai"], default="var")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    driver = fake_driver.install("sm_90")
    import torch

    torch.set_num_threads(1)
    model = random_llava(hidden=64, layers=given.layers, heads=4, kv_heads=4, mlp=64, patches_per_side=4)
    inputs = llava_inputs(model, text=40)
    spent = Spent()
    times = {}
    with torch.no_grad():
        for name in ("plain", given.method):
            run = runner(model, inputs, name, spent)
            found = [step_time(run, given.tokens, spent) for _ in range(1 + given.repeats)][1:]
            times[name] = [1e6 * min(values) / given.layers for values in zip(*found)]
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
    net = times[given.method][0] - times["plain"][0]
    print(f"{given.method}, {given.layers} layers, all acting: {net:.1f} us net per acting layer and step")
    print(f"inside attend {times[given.method][1]:.1f} us; launches per acting layer and step: {each:.1f}")


class Spent:
    """CPU time inside `attend` of the registry."""

    def __init__(self) -> None:
        from lvlm_attn.kernels import dispatch
        from lvlm_attn.runtime import fused, registry

        dispatch.unavailable = lambda device: None  # type: ignore[assignment]
        self.seconds, real = 0.0, registry.attend_fused

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            output = real(*args, **kwargs)
            self.seconds += time.thread_time() - begin
            return output

        registry.attend_fused = timed  # type: ignore[assignment]
        assert fused.attend_fused is real


def runner(model: Any, inputs: dict[str, Any], name: str, spent: Spent) -> Any:
    """A function that decodes so many tokens."""
    import lvlm_attn as la

    def plain(tokens: int) -> Any:
        return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    if name == "plain":
        return plain
    everywhere = {"layers": "0:"}
    items = {
        "var": lambda: la.VAR(rho=0.0, mass_floor=0.0, tau=0.0, sink_dims=(3, 32), **everywhere),
        "pai": lambda: la.PAI(gamma=1.0, **everywhere),
    }

    def wrapped(tokens: int) -> Any:
        with la.wrap(model, items[name](), kernels="triton"):
            return plain(tokens)

    return wrapped


def step_time(run: Any, tokens: int, spent: Spent) -> tuple[float, float]:
    """CPU seconds of a decoding step, and of it inside `attend`."""
    taken = []
    for many in (2, 2 + tokens):
        begin, inside = time.process_time(), spent.seconds
        run(many)
        taken.append((time.process_time() - begin, spent.seconds - inside))
    return tuple((after - before) / tokens for before, after in zip(*taken))  # type: ignore[return-value]


if __name__ == "__main__":
    main()
