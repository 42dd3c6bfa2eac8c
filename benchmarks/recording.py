"""What recording attention costs on the CPU: time, and memory against what `la.record` predicts.

A random LLaVA with LLaVA-1.5's prompt shape: hidden 1024, 8 layers, 16 heads, 576 patches and 60 text tokens, 128 new
tokens; every run stands between two plain ones. `all heads` records all 8 layers as they are, `mean head` averages
heads while recording, `disk` streams all heads into files.

Then the same model with a prompt of 2,900 tokens: the bytes of recorded weights that are held at once, counted, against
the prediction; resident memory while the answer is decoded beyond plain `generate`, which says less; and whether any
operation makes a tensor of queries by keys.

    python -m benchmarks.recording [--repeats 9] [--save]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any

from benchmarks.common import decode_peak, generate_ratios, llava_inputs, peak_memory, random_llava, save
from benchmarks.recording_memory import counted

LONG_SIDE, LONG_TEXT = 53, 91  # 53 x 53 patches and 91 words are 2,900 tokens
VARIANTS = ("plain", "all heads", "mean head", "disk")


def runner(model: Any, inputs: dict[str, Any], variant: str, new_tokens: int, folder: str) -> Any:
    """A function that generates once; with a recorder it returns its maps and the bytes predicted for them."""
    import lvlm_attn as la

    options = {"max_new_tokens": new_tokens, "do_sample": False}
    settings = {"mean head": {"reduce": "heads"}, "disk": {"to": folder}}.get(variant, {})

    def run() -> Any:
        if variant == "plain":
            return model.generate(**inputs, **options)
        with la.wrap(model, la.record(**settings)) as lvlm:
            model.generate(**inputs, **options)
            predicted = lvlm.report().rows[0][0]["predicted_mib"]
            return lvlm.maps, predicted

    return run


def squares(model: Any, run: Any, length: int) -> tuple[int, float]:
    """How many tensors a run makes that have two axes of at least `length`, and the MiB of the largest."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    found: list[float] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            for item in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(item, torch.Tensor) and sum(size >= length for size in item.shape) >= 2:
                    found.append(item.numel() * item.element_size() / 2**20)
            return result

    with Watch():
        run()
    return len(found), max(found, default=0.0)


def long_prompt(new_tokens: int, side: int) -> dict[str, Any]:
    """Memory and tensors of the long prompt, each run in a process of its own."""
    arguments = ["--new-tokens", str(new_tokens), "--side", str(side), "--part"]
    found: dict[str, Any] = {"new_tokens": new_tokens, "prompt_tokens": side**2 + LONG_TEXT}
    plain = peak_memory("benchmarks.recording", [*arguments, "peak of plain"], give_back=True)
    print(f"\nprompt of {found['prompt_tokens']:,} tokens, {new_tokens} new ones")
    for variant in VARIANTS[1:]:
        peak = peak_memory("benchmarks.recording", [*arguments, f"peak of {variant}"], give_back=True) - plain
        predicted = peak_memory("benchmarks.recording", [*arguments, f"prediction of {variant}"])
        held = peak_memory("benchmarks.recording", [*arguments, f"held of {variant}"])
        found[variant] = {"predicted_mib": predicted, "held_mib": held, "peak_beyond_plain_mib": peak}
        print(
            f"{variant:10}  predicted {predicted:7.1f} MiB, held at once {held:7.1f} MiB, resident {peak:7.1f} MiB "
            f"beyond plain"
        )
    for name in ("recorded", "eager"):
        count, largest = (
            peak_memory("benchmarks.recording", [*arguments, f"{what} of {name}"])
            for what in ("squares", "largest")
        )
        found[name] = {"squares": int(count), "largest_mib": largest}
        print(f"{name:10}  {int(count)} tensors of queries by keys, the largest of {largest:,.1f} MiB")
    return found


def one_part(part: str, new_tokens: int, side: int) -> float:
    """One number of the long prompt."""
    what, _, name = part.partition(" of ")
    model = random_llava(patches_per_side=side)
    inputs = llava_inputs(model, text=LONG_TEXT)
    if what in ("squares", "largest"):
        model.set_attn_implementation("eager" if name == "eager" else "sdpa")
        run = runner(model, inputs, "plain" if name == "eager" else "all heads", 2, "")
        return squares(model, run, inputs["input_ids"].shape[1])[what == "largest"]
    with tempfile.TemporaryDirectory() as folder:
        run = runner(model, inputs, name, new_tokens, folder)
        if what == "held":
            with counted() as held:
                run()
            return held.bytes / 2**20
        return decode_peak(model, run) if what == "peak" else run()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--side", type=int, default=LONG_SIDE, help="patches along a side of the long prompt")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/recording_cpu.json")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(one_part(options.part, options.new_tokens, options.side))
        return

    model = random_llava()
    inputs = llava_inputs(model)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            count: {name: runner(model, inputs, name, count, folder) for name in VARIANTS}
            for count in (options.new_tokens, 1)
        }
        held = {name: 0.0 if name == "plain" else runs[options.new_tokens][name]()[1] for name in VARIANTS}
        rows = generate_ratios(runs, options.repeats, held)
    del model
    long = long_prompt(options.new_tokens, options.side)
    if options.save:
        result = {
            "repeats": options.repeats,
            "new_tokens": options.new_tokens,
            "variants": rows,
            "long": long,
        }
        print(save("recording_cpu", result), file=sys.stderr)


if __name__ == "__main__":
    main()
