"""What a second view costs on the CPU: VCD in one batch, against plain `generate` and two separate ones.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens, batch 1. `separate` is what a second view costs without joining: a `generate` of the prompt and one
of its noisy copy, of which no logits are joined. Every run stands between two plain ones.

    python -m benchmarks.branches [--repeats 9] [--save]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

from benchmarks.common import (
    llava_inputs,
    median_interval,
    paired,
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
    measured = {}
    for count, variants in runs.items():
        others = {name: run for name, run in variants.items() if name != "plain"}
        measured[count] = paired(variants["plain"], others, options.repeats)
    (whole, whole_ratios), (first, first_ratios) = measured[NEW_TOKENS], measured[1]
    memory = {name: peak_memory("benchmarks.branches", ["--memory-of", name]) for name in VARIANTS}

    print(f"{'':9} {'generate':>9} {'ratio (95 % interval)':>22}   {'prefill':>8} {'ratio':>6}   ", end="")
    print(f"{'decode':>9} {'ratio':>6}   memory")
    rows = {}
    for name in VARIANTS:
        decode, plain = (
            (statistics.median(whole[one]) - statistics.median(first[one])) / (NEW_TOKENS - 1)
            for one in (name, "plain")
        )
        middle, low, high = median_interval(whole_ratios.get(name, [1.0]))
        row = {
            "generate_s": statistics.median(whole[name]),
            "generate_ratio": middle,
            "generate_ratio_95": [low, high],
            "prefill_ms": 1e3 * statistics.median(first[name]),
            "prefill_ratio": median_interval(first_ratios.get(name, [1.0]))[0],
            "decode_ms_per_token": 1e3 * decode,
            "decode_ratio": decode / plain,
            "peak_memory_mib": memory[name],
            "generate_s_all": whole[name],
            "prefill_s_all": first[name],
        }
        rows[name] = row
        print(
            f"{name:9} {row['generate_s']:8.3f}s {middle:6.3f} ({low:.3f} to {high:.3f})   "
            f"{row['prefill_ms']:6.0f}ms {row['prefill_ratio']:6.3f}   "
            f"{row['decode_ms_per_token']:7.2f}ms {row['decode_ratio']:6.3f}   {memory[name]:.0f} MiB"
        )
    if options.save:
        print(save("branches_cpu", {"repeats": options.repeats, "variants": rows}), file=sys.stderr)


if __name__ == "__main__":
    main()
