"""What VAR, VHR and an idle wrap cost on top of plain `generate` on the CPU.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens. The sink threshold is so low that VAR treats every layer it may, and its floors are zero, so
that every head and row is changed: the dearest case there is. Every run stands between two plain ones.

    python -m benchmarks.overhead [--repeats 9] [--save]
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

    base = {count: runner(model, inputs, "plain", count) for count in (NEW_TOKENS, 1)}
    runs = {
        count: {name: runner(model, inputs, name, count) for name in VARIANTS[1:]}
        for count in (NEW_TOKENS, 1)
    }
    whole, whole_ratios = paired(base[NEW_TOKENS], runs[NEW_TOKENS], options.repeats)
    first, first_ratios = paired(base[1], runs[1], options.repeats)
    memory = {name: peak_memory("benchmarks.overhead", ["--memory-of", name]) for name in VARIANTS}

    print(f"{'':10}  {'generate':>9} {'ratio (95 % interval)':>22}   {'prefill':>8} {'ratio':>6}   ", end="")
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
            "memory_beyond_plain_mib": memory[name] - memory["plain"],
            "generate_s_all": whole[name],
            "prefill_s_all": first[name],
        }
        rows[name] = row
        print(
            f"{name:10}  {row['generate_s']:8.3f}s {middle:6.3f} ({low:.3f} to {high:.3f})   "
            f"{row['prefill_ms']:6.0f}ms {row['prefill_ratio']:6.3f}   "
            f"{row['decode_ms_per_token']:7.2f}ms {row['decode_ratio']:6.3f}   "
            f"{row['memory_beyond_plain_mib']:+.0f} MiB"
        )
    if options.save:
        print(save("overhead_cpu", {"repeats": options.repeats, "variants": rows}), file=sys.stderr)


if __name__ == "__main__":
    main()
