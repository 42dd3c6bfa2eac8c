"""What a second view costs on the CPU: VCD in one batch, against plain `generate` and two separate ones.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens, batch 1. `separate` is what a second view costs without joining: a `generate` of the prompt and one
of its noisy copy, of which no logits are joined. Every run stands between two plain ones.

    python -m benchmarks.branches [--repeats 9] [--save]
"""

from __future__ import annotations

from typing import Any

from benchmarks.whole_runs import measure

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
    measure("branches", __doc__, runner, VARIANTS, NEW_TOKENS)


if __name__ == "__main__":
    main()
