"""What a second view costs on the CPU: VCD in one batch, against plain `generate` and two separate ones.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens, batch 1. `separate` is what a second view costs without joining: a `generate` of the prompt and one
of its noisy copy, of which no logits are joined. Every run stands between two plain ones.

    python -m benchmarks.branches [--repeats 9] [--save]
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
VARIANTS = ("plain", "vcd", "pai", "separate")


def runner(model: Any, inputs: dict[str, Any], variant: str, new_tokens: int) -> Any:
    """A function that generates once."""
    import lvlm_attn as la
    from lvlm_attn.hooks.vcd import noisy

    options = {"max_new_tokens": new_tokens, "do_sample": False}
    methods = {"vcd": la.VCD(), "pai": la.PAI(alpha=0)}

    def run() -> Any:
        if variant in methods:
            with la.wrap(model, methods[variant]) as lvlm:
                return lvlm.generate(**inputs, **options)
        main = model.generate(**inputs, **options)
        if variant == "separate":
            model.generate(**{**inputs, "pixel_values": noisy(inputs["pixel_values"], 500)}, **options)
        return main

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/branches_cpu.json")
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
    memory = {name: peak_memory("benchmarks.branches", ["--memory-of", name]) for name in VARIANTS}
    rows = generate_ratios(runs, options.repeats, memory)
    for name, row in rows.items():
        row["peak_memory_mib"] = memory[name]
    if options.save:
        print(save("branches_cpu", {"repeats": options.repeats, "variants": rows}), file=sys.stderr)


if __name__ == "__main__":
    main()
