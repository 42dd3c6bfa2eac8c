"""What VAR, VHR and an idle wrap cost on top of plain `generate` on the CPU.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens. The sink threshold is so low that VAR treats every layer it may, and its floors are zero, so
that every head and row is changed: the dearest case there is. Every run stands between two plain ones.

    python -m benchmarks.overhead [--repeats 9] [--save]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from benchmarks.common import (
    generate_ratios,
    llava_inputs,
    peak_beyond,
    peak_memory,
    random_llava,
    save,
)

NEW_TOKENS = 32
VARIANTS = ("plain", "idle", "neutral", "var", "vhr", "var+vhr")


def interventions(variant: str) -> list[Any] | None:
    """The interventions of a variant; None for the model without any wrap."""
    import lvlm_attn as la

    var = la.VAR(rho=0.0, mass_floor=0.0, tau=2.5, sink_dims=(3, 500))
    return {
        "plain": None,
        "idle": [],
        "neutral": [la.VAR(removed_fraction=0), la.VHR(alpha=1)],
        "var": [var],
        "vhr": [la.VHR()],
        "var+vhr": [var, la.VHR()],
    }[variant]


def runner(model: Any, inputs: dict[str, Any], variant: str, new_tokens: int) -> Any:
    """A function that generates once."""
    import lvlm_attn as la

    chosen = interventions(variant)

    def run() -> Any:
        options = {"max_new_tokens": new_tokens, "do_sample": False}
        if chosen is None:
            return model.generate(**inputs, **options)
        with la.wrap(model, *chosen):
            return model.generate(**inputs, **options)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/overhead_cpu.json")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    model = random_llava()
    inputs = llava_inputs(model)
    if options.memory_of:
        print(peak_beyond(runner(model, inputs, options.memory_of, NEW_TOKENS)))
        return

    runs = {
        count: {name: runner(model, inputs, name, count) for name in VARIANTS} for count in (NEW_TOKENS, 1)
    }
    peak = {name: peak_memory("benchmarks.overhead", ["--memory-of", name]) for name in VARIANTS}
    memory = {name: peak[name] - peak["plain"] for name in VARIANTS}
    rows = generate_ratios(runs, options.repeats, memory, sign="+")
    for name, row in rows.items():
        row["memory_beyond_plain_mib"] = memory[name]
    if options.save:
        print(save("overhead_cpu", {"repeats": options.repeats, "variants": rows}), file=sys.stderr)


if __name__ == "__main__":
    main()
