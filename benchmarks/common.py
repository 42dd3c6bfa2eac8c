"""What the benchmarks share: random models of a given shape, interleaved timing, peak memory, and results."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BEFORE, QUESTION = 35, 60
"""Text tokens before the image, and after it; a question in LLaVA's template."""


def random_llava(
    *,
    hidden: int = 1024,
    layers: int = 8,
    heads: int = 16,
    kv_heads: int | None = None,
    mlp: int = 2816,
    patches_per_side: int = 24,
    vocab: int = 32064,
    vision_hidden: int = 64,
    dtype: str = "float32",
    device: str = "cpu",
    seed: int = 0,
) -> Any:
    """A LLaVA with random weights: a language model of the given shape, and a narrow vision tower."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision_hidden,
            intermediate_size=2 * vision_hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=14 * patches_per_side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads or heads,
            vocab_size=vocab,
            max_position_embeddings=65536,
        ),
        image_token_id=32000,
        vision_feature_layer=-1,
    )
    with torch.device(device):
        torch.set_default_dtype(getattr(torch, dtype))
        try:
            model = LlavaForConditionalGeneration(config).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None  # always the full number of new tokens
    model.generation_config.pad_token_id = 0
    return model


def llava_inputs(
    model: Any, *, batch: int = 1, text: int = 60, before: int = 35, seed: int = 0
) -> dict[str, Any]:
    """A prompt of `before` text tokens, one image, and the rest of `text`, as in LLaVA-1.5's template."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    words = torch.randint(10, 31000, (batch, text), generator=generator)
    words[:, 0] = 1
    image = torch.full((batch, patches), model.config.image_token_id)
    ids = torch.cat((words[:, :before], image, words[:, before:]), 1).to(model.device)
    size = model.config.vision_config.image_size
    pixels = torch.randn(batch, 3, size, size, generator=generator).to(model.device, model.dtype)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def interleave(
    variants: Mapping[str, Callable[[], Any]], repeats: int, *, warmup: int = 1
) -> dict[str, list[float]]:
    """Times the variants in turn, `repeats` times over, each round beginning with another one.

    Returns:
        Seconds per variant and round.
    """
    names = list(variants)
    for name in names:
        for _ in range(warmup):
            variants[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            variants[name]()
            times[name].append(time.perf_counter() - begin)
    return times


def paired(
    base: Callable[[], Any], variants: Mapping[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Times every variant between two runs of the base, `repeats` times over.

    A machine that slows down or speeds up for a while does so for a variant and its neighbours alike.

    Returns:
        Seconds per variant and round, the base among them as `"plain"` (all its runs); and per variant and
        round its ratio to the mean of the base runs before and after it.
    """
    for run in (base, *variants.values()):
        run()
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in ("plain", *names)}
    ratios: dict[str, list[float]] = {name: [] for name in names}
    before = _seconds(base)
    times["plain"].append(before)
    for turn in range(repeats):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken = _seconds(variants[name])
            after = _seconds(base)
            times[name].append(taken)
            times["plain"].append(after)
            ratios[name].append(2 * taken / (before + after))
            before = after
    return times, ratios


def generate_ratios(
    runs: Mapping[int, Mapping[str, Callable[[], Any]]],
    repeats: int,
    memory: Mapping[str, float],
    sign: str = "",
) -> dict[str, dict[str, Any]]:
    """Times whole generates and their prefill against `"plain"`, prints a table and returns its rows.

    Args:
        runs: functions by variant, `"plain"` among them, for a number of new tokens and for 1.
        repeats: rounds.
        memory: MiB of each variant, printed as it is.
        sign: `"+"` prints its sign.
    """
    tokens = max(runs)
    measured = {}
    for count, variants in runs.items():
        others = {name: run for name, run in variants.items() if name != "plain"}
        measured[count] = paired(variants["plain"], others, repeats)
    (whole, whole_ratios), (first, first_ratios) = measured[tokens], measured[1]
    print(f"{'':18}  {'generate':>9} {'ratio (95 % interval)':>22}   {'prefill':>8} {'ratio':>6}   ", end="")
    print(f"{'decode':>9} {'ratio':>6}   memory")
    rows = {}
    for name in runs[tokens]:
        decode, plain = (
            (statistics.median(whole[one]) - statistics.median(first[one])) / (tokens - 1)
            for one in (name, "plain")
        )
        middle, low, high = median_interval(whole_ratios.get(name, [1.0]))
        row = rows[name] = {
            "generate_s": statistics.median(whole[name]),
            "generate_ratio": middle,
            "generate_ratio_95": [low, high],
            "prefill_ms": 1e3 * statistics.median(first[name]),
            "prefill_ratio": median_interval(first_ratios.get(name, [1.0]))[0],
            "decode_ms_per_token": 1e3 * decode,
            "decode_ratio": decode / plain,
            "generate_s_all": whole[name],
            "prefill_s_all": first[name],
        }
        print(
            f"{name:18}  {row['generate_s']:8.3f}s {middle:6.3f} ({low:.3f} to {high:.3f})   "
            f"{row['prefill_ms']:6.0f}ms {row['prefill_ratio']:6.3f}   "
            f"{row['decode_ms_per_token']:7.2f}ms {row['decode_ratio']:6.3f}   {memory[name]:{sign}.0f} MiB"
        )
    return rows


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and a 95 % interval for it from order statistics (binomial, no assumption on the noise)."""
    from scipy.stats import binom

    ordered = sorted(values)
    low = max(int(binom.ppf(0.025, len(ordered), 0.5)) - 1, 0)
    return statistics.median(ordered), ordered[low], ordered[len(ordered) - 1 - low]


def _seconds(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> float:
    """The median round of `name` over the median round of `base`."""
    return statistics.median(times[name]) / statistics.median(times[base])


def peak_memory(module: str, arguments: list[str], give_back: bool = False) -> float:
    """Peak memory in MiB of `python -m module arguments`, which prints it as its last line.

    Args:
        module: of the benchmark.
        arguments: its arguments.
        give_back: have glibc give every freed block of more than 64 KiB back at once. Otherwise it keeps the freed
            copies of a growing cache wherever something small that lives on was put between them, and what is
            resident says little about what is held.
    """
    more = {"MALLOC_MMAP_THRESHOLD_": "65536"} if give_back else {}
    output = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **more},
    ).stdout
    return float(output.strip().splitlines()[-1])


def peak_beyond(run: Callable[[], Any]) -> float:
    """Peak resident memory in MiB while `run` runs, beyond what was resident before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1024


def decode_peak(model: Any, run: Callable[[], Any]) -> float:
    """Peak resident memory in MiB from the first decoding step of `run` on, beyond what was resident then (Linux)."""
    before: list[float] = []
    lengths = [0]

    def note(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        lengths.append(kwargs["inputs_embeds"].shape[1])
        if not before and lengths[-1] == 1 < lengths[-2]:  # not the one token that a wrap sends to look
            # What the prefill has freed goes back first, or decoding would take it without being seen.
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before.append(_status("VmRSS"))

    hook = model.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        kept = run()
        peak = _status("VmHWM")
    finally:
        hook.remove()
    del kept
    return (peak - before[0]) / 1024


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}; peak memory can be measured on Linux only")


def environment() -> dict[str, Any]:
    """Versions and the machine, for the result file."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "processor": _processor(),
    }
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = None
    return found


def save(name: str, result: dict[str, Any]) -> Path:
    """Writes `benchmarks/results/<name>.json`, and the same to the folder that the environment variable OUT names."""
    text = json.dumps({"environment": environment(), **result}, indent=2) + "\n"
    path = RESULTS / f"{name}.json"
    beside = [Path(os.environ["OUT"]) / path.name] if os.environ.get("OUT") else []
    for one in (path, *beside):
        one.parent.mkdir(parents=True, exist_ok=True)
        one.write_text(text)
    return path


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
