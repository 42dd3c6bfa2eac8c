"""A whole model of 7B shape with random weights: what VAR with VHR, and VCD, cost in prefill and per new token."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

from benchmarks.common import llava_inputs, random_llava
from benchmarks.gpu import Machine, show

FULL = {
    "shape": {
        "hidden": 4096,
        "layers": 32,
        "heads": 32,
        "mlp": 11008,
        "patches_per_side": 53,
        "dtype": "bfloat16",
    },
    "text": 91,  # with 53 * 53 patches 2,900 tokens
    "new_tokens": 128,
    "repeats": 5,
}
TINY = {
    "shape": {"hidden": 64, "layers": 3, "heads": 2, "mlp": 64, "patches_per_side": 4, "vision_hidden": 16},
    "text": 40,
    "new_tokens": 3,
    "repeats": 1,
}
VARIANTS = ("plain", "var+vhr", "vcd")


def interventions(variant: str, hidden: int) -> list[Any]:
    """Floors of 0 and a low threshold for sinks, so that VAR changes every head and row it may."""
    import lvlm_attn as la

    if variant == "vcd":
        return [la.VCD()]
    return [la.VAR(rho=0.0, mass_floor=0.0, tau=2.5, sink_dims=(3, hidden // 2)), la.VHR()]


def whole_model(machine: Machine) -> list[dict[str, Any]]:
    """Times one new token, and all of them; the difference is what the other tokens cost.

    Each variant runs in turn, each round beginning with another one. Outputs of the edited variants must differ
    from plain ones in what is measured here only by the interventions, so a wrap without any is compared first.
    """
    import torch

    import lvlm_attn as la

    plan: dict[str, Any] = FULL if machine.is_gpu else TINY
    model = random_llava(**plan["shape"], device=str(machine.device))
    inputs = llava_inputs(model, text=plan["text"])
    kernels = "auto" if machine.is_gpu else "triton"
    new_tokens = plan["new_tokens"]
    picked: dict[str, Any] = {}

    def generate(variant: str, tokens: int) -> Any:
        options: dict[str, Any] = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        if variant == "plain":
            return model.generate(**inputs, **options)
        chosen = [] if variant == "idle" else interventions(variant, plan["shape"]["hidden"])
        with la.wrap(model, *chosen, kernels=kernels) as lvlm:
            output = lvlm.generate(**inputs, **options)
            picked[variant] = lvlm.report().kernels
            return output

    if not torch.equal(generate("plain", 4), generate("idle", 4)):
        raise SystemExit("A wrap without interventions changed what the model generates.")
    taken: dict[tuple[str, int], list[float]] = {(name, n): [] for name in VARIANTS for n in (1, new_tokens)}
    for key in taken:
        generate(*key)
    for turn in range(plan["repeats"]):
        shift = turn % len(VARIANTS)
        for name in VARIANTS[shift:] + VARIANTS[:shift]:
            for tokens in (1, new_tokens):
                machine.wait()
                begin = time.perf_counter()
                generate(name, tokens)
                machine.wait()
                taken[name, tokens].append(1e3 * (time.perf_counter() - begin))
    length = inputs["input_ids"].shape[1]
    rows = [
        {
            "variant": name,
            **_times(taken[name, 1], taken[name, new_tokens], new_tokens),
            "prompt": length,
            "new_tokens": new_tokens,
            "kernels": picked.get(name),
            "peak_mib": machine.peak(partial(generate, name, 2)),
        }
        for name in VARIANTS
    ]
    for row in rows:
        row["ratio"] = row["ms"] / rows[0]["ms"]
        row["prefill_ratio"] = row["prefill_ms"] / rows[0]["prefill_ms"]
        row["per_token_ratio"] = row["ms_per_token"] / rows[0]["ms_per_token"]
    show(f"Whole model, {length} tokens of prompt, {new_tokens} new ones", rows)
    return rows


def _times(one: list[float], all_of_them: list[float], new_tokens: int) -> dict[str, Any]:
    """Of one new token and of all, in ms."""
    first, total = statistics.median(one), statistics.median(all_of_them)
    return {"ms": total, "prefill_ms": first, "ms_per_token": (total - first) / (new_tokens - 1)}
