"""What VAR, VHR and an idle wrap cost on top of plain `generate` on the CPU.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens,
32 new tokens. The sink threshold is so low that VAR treats every layer it may, and its floors are zero, so
that every head and row is changed: the dearest case there is. Every run stands between two plain ones. Every run asks
the same, so VHR's pass over the text of the prompt is remembered (`runtime.text_pass`); with `new text` it is forgotten
before each run, as if every prompt had a text of its own. At the end is printed where the time beyond plain goes.

    python -m benchmarks.overhead [--repeats 9] [--save]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.whole_runs import measure

NEW_TOKENS = 32
NEW_TEXT = ", new text"
VARIANTS = ("plain", "idle", "neutral", "var", "vhr", "vhr, new text", "var+vhr", "var+vhr, new text")
LAYERS = 8
ENTRIES = 20


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
    }[variant.removesuffix(NEW_TEXT)]


def runner(model: Any, inputs: dict[str, Any], variant: str, new_tokens: int) -> Any:
    """A function that generates once."""
    import lvlm_attn as la
    from lvlm_attn.runtime.text_pass import TEXTS

    chosen = interventions(variant)

    def run() -> Any:
        options = {"max_new_tokens": new_tokens, "do_sample": False}
        if chosen is None:
            return model.generate(**inputs, **options)
        if variant.endswith(NEW_TEXT):
            TEXTS.forget()
        with la.wrap(model, *chosen):
            return model.generate(**inputs, **options)

    return run


def where(
    rows: Mapping[str, Mapping[str, Any]], entering_ms: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Shares the time beyond plain out: entering and leaving the wrap, the rest of the prefill, and decoding.

    Args:
        rows: the table, `"plain"` among them.
        entering_ms: what entering and leaving costs, for each other variant.

    Returns:
        Milliseconds for each variant, decoding also for a layer and a step.

    Example:
        >>> plain = {"generate_s": 1.0, "prefill_ms": 400.0, "decode_ms_per_token": 20.0}
        >>> ours = {"generate_s": 1.1, "prefill_ms": 438.0, "decode_ms_per_token": 22.0}
        >>> where({"plain": plain, "var": ours}, {"var": 3.0})["var"]["prefill_ms"]
        35.0
    """
    plain, found = rows["plain"], {}
    for name, entered in entering_ms.items():
        step = rows[name]["decode_ms_per_token"] - plain["decode_ms_per_token"]
        found[name] = {
            "generate_ms": 1e3 * (rows[name]["generate_s"] - plain["generate_s"]),
            "entering_ms": entered,
            "prefill_ms": rows[name]["prefill_ms"] - plain["prefill_ms"] - entered,
            "decode_ms": step * (NEW_TOKENS - 1),
            "decode_us_per_layer_and_step": 1e3 * step / LAYERS,
        }
    return found


def entering(model: Any, variant: str) -> float:
    """Milliseconds that entering and leaving a wrap takes once the model is known."""
    import lvlm_attn as la

    taken = []
    for _ in range(ENTRIES):
        begin = time.perf_counter()
        with la.wrap(model, *(interventions(variant) or [])):
            pass
        taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(taken)


def told(model: Any, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Prints where the time beyond plain goes."""
    found = where(rows, {name: entering(model, name) for name in VARIANTS if name != "plain"})
    print(
        f"\n{'beyond plain, ms':18} {'generate':>9} {'entering':>9} {'prefill':>9} {'decode':>9}   a layer and step"
    )
    for name, row in found.items():
        print(
            f"{name:18} {row['generate_ms']:9.1f} {row['entering_ms']:9.1f} {row['prefill_ms']:9.1f} "
            f"{row['decode_ms']:9.1f}   {row['decode_us_per_layer_and_step']:.0f} us"
        )
    return {"beyond_plain": found}


def main() -> None:
    measure("overhead", __doc__, runner, VARIANTS, NEW_TOKENS, beyond_plain=True, after=told)


if __name__ == "__main__":
    main()
