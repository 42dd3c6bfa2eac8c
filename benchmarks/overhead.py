"""What VAR, VHR and an idle wrap cost on top of plain `generate` on the CPU.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens. The sink threshold is so low that VAR treats every layer it may, and its floors are zero, so
that every head and row is changed: the dearest case there is. Every run stands between two plain ones.

    python -m benchmarks.overhead [--repeats 9] [--save]
"""

from __future__ import annotations

from typing import Any

from benchmarks.whole_runs import measure

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
    measure("overhead", __doc__, runner, VARIANTS, NEW_TOKENS, beyond_plain=True)


if __name__ == "__main__":
    main()
