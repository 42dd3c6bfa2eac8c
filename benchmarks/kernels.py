"""What VAR and MMA cost inside one attention call: corrections on top of SDPA, against full eager VAR.

One prefill of a single sample: 35 text tokens, one image, and a question of 60 tokens, whose rows VAR touches and to
whose keys MMA opens the image. What layers of a forward could share is made anew every time.
Eager VAR computes, as the released implementations do, the whole weight matrix and redistributes in it. Its
matrices grow with the square of the length, so long prompts are run with as many heads as fit the memory; all
variants of a length have the same heads.

    python -m benchmarks.kernels [--device cpu] [--lengths 640 2900 8000] [--repeats 7] [--save]
    python -m benchmarks.kernels --device cuda --parts prefill  # on a GPU, see benchmarks.kernels_cuda
    python -m benchmarks.kernels --device cpu-interpret  # the same at tiny sizes in Triton's interpreter
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import BEFORE, QUESTION, interleave, peak_beyond, peak_memory, ratio, save
from lvlm_attn.kernels import reference
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.corrected import corrected_rows
from lvlm_attn.kernels.log_sum_exp import with_log_sum_exp
from lvlm_attn.kernels.spec import Geometry, KeyClass, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.unlocked import attend_unlocked
from lvlm_attn.kernels.visibility import ALL, Visibility

VARIANTS = ("sdpa", "var", "mma", "eager")


def call(length: int, heads: int, dim: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Random query, key, value, and a redistribution with a sink at the first token and at 1 % of the patches."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(1, heads, length, dim, generator=generator).to(device) for _ in range(3))
    classes = torch.zeros(1, length, dtype=torch.int8)
    classes[:, BEFORE : length - QUESTION] = int(KeyClass.PATCH)
    is_sink = torch.rand(1, length, generator=generator) < 0.01
    is_sink[:, 0] = True
    classes += is_sink.to(torch.int8)
    touched = torch.zeros(1, length, dtype=torch.bool)
    touched[:, -QUESTION:] = True
    return {
        "query": query,
        "key": key,
        "value": value,
        "spec": Redistribution(classes.to(device), touched.to(device), 0.4, 0.5, 0.2),
        "seen": Visibility((classes // 2).long().to(device), ((ALL, ALL), (ALL, ALL)), ((0, 0), (ALL, 0))),
        "geometry": Geometry(0, length, length),
    }


def variant(name: str, given: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """A function that computes the outputs `(batch, queries, heads, head_dim)` once."""
    query, key, value = given["query"], given["key"], given["value"]
    spec, geometry, scaling = given["spec"], given["geometry"], given["query"].shape[-1] ** -0.5

    def sdpa() -> torch.Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling
        )
        return out.transpose(1, 2).contiguous()

    def with_total() -> tuple[AttentionCall, torch.Tensor, torch.Tensor]:
        made = AttentionCall(query, key, value, geometry, scaling)
        output, _, total = with_log_sum_exp(lambda: (sdpa(), None), made)
        assert total is not None
        return made, output, total

    def var() -> torch.Tensor:
        made, output, total = with_total()
        rows = Rows.of(spec.is_touched)
        assert rows is not None
        corrected = corrected_rows(output, total, made, rows, redistribution=spec)
        assert corrected is not None
        return corrected.output

    def mma() -> torch.Tensor:
        made, output, total = with_total()
        joined = attend_unlocked(output, total, made, [given["seen"]])
        assert joined is not None
        return joined[0]

    def eager() -> torch.Tensor:
        out, _ = reference.attention(
            query, key, value, scaling=scaling, geometry=geometry, redistribution=spec
        )
        return out.transpose(1, 2).contiguous()

    chosen = {"sdpa": sdpa, "var": var, "mma": mma, "eager": eager}[name]

    def run() -> torch.Tensor:
        with torch.no_grad():
            out = chosen()
        if out.is_cuda:
            torch.cuda.synchronize()
        return out

    return run


def heads_that_fit(length: int, heads: int) -> int:
    """How many heads eager VAR has memory for: it holds about 6 matrices of weights in fp32 at a time.

    0 if not even one fits into a third of what is free, so that nothing is swapped.
    """
    free = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return min(heads, int(free // 3 // (6 * 4 * length**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda", "cpu-interpret"), default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[640, 2900, 8000])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write to benchmarks/results (on a GPU always)")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--parts", nargs="+", help="on a GPU: which of `kernels_cuda.PARTS` to run; all by default"
    )
    options = parser.parse_args()
    if options.device != "cpu":
        if options.device == "cpu-interpret":
            os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
        from benchmarks import kernels_cuda

        parts = options.parts or list(kernels_cuda.PARTS)
        if unknown := set(parts) - set(kernels_cuda.PARTS):
            parser.error(f"--parts {' '.join(sorted(unknown))}: choose from {', '.join(kernels_cuda.PARTS)}")
        kernels_cuda.run(options.device, parts, write=options.device == "cuda" or options.save)
        return
    if options.memory_of:
        given = call(options.lengths[0], options.heads, options.dim, "cpu")
        print(peak_beyond(variant(options.memory_of, given)))
        return

    print(f"heads of {options.dim}, fp32, cpu")
    print(
        f"{'tokens':>7} {'heads':>6}  {'variant':13} {'ms':>9} {'of sdpa':>8} {'eager is':>9}   peak beyond inputs"
    )
    results: list[dict[str, Any]] = []
    for length in options.lengths:
        results += measured(length, options.heads, options.dim, options.repeats)
    if options.save:
        about = {"dim": options.dim, "repeats": options.repeats, "load_average": os.getloadavg()[1]}
        print(save("kernels_cpu", {**about, "rows": results}), file=sys.stderr)


def measured(length: int, most_heads: int, dim: int, repeats: int) -> list[dict[str, Any]]:
    """Times and peak memory at one length; eager VAR is left out where it cannot fit."""
    fitting = heads_that_fit(length, most_heads)
    heads = fitting or most_heads
    given = call(length, heads, dim, "cpu")
    runs = {name: variant(name, given) for name in VARIANTS if fitting or name != "eager"}
    check(given, length)
    times = interleave(runs, repeats)
    results = []
    for name in VARIANTS:
        row: dict[str, Any] = {"tokens": length, "heads": heads, "variant": name}
        results.append(row)
        if name not in runs:
            row["out_of_memory_mib"] = 6 * 4 * length**2 / 2**20
            print(
                f"{length:7d} {heads:6d}  {name:13} out of memory at {row['out_of_memory_mib']:.0f} MiB per head"
            )
            continue
        shape = ["--lengths", str(length), "--heads", str(heads), "--dim", str(dim)]
        row["ms"] = 1e3 * statistics.median(times[name])
        row["ratio_to_sdpa"] = ratio(times, name, "sdpa")
        row["eager_ratio"] = ratio(times, "eager", name) if fitting else None
        row["peak_mib"] = peak_memory("benchmarks.kernels", [*shape, "--memory-of", name])
        row["weights_mib"] = heads * length**2 * 4 / 2**20
        eager = f"{row['eager_ratio']:8.1f}x" if fitting else "        -"
        print(
            f"{length:7d} {heads:6d}  {name:13} {row['ms']:9.1f} {row['ratio_to_sdpa']:7.2f}x {eager}"
            f"   {row['peak_mib']:.0f} MiB (a matrix of weights: {row['weights_mib']:.0f} MiB)",
            flush=True,
        )
    return results


def check(given: dict[str, Any], length: int) -> None:
    """Correctness first, against float64 by definition: the last rows, which VAR touches, and some of the image's."""
    rows = min(length, 600)
    part = {**given, "query": given["query"][:, :, -rows:], "geometry": Geometry(length - rows, rows, length)}
    spec = given["spec"]
    part["spec"] = replace(spec, is_touched=spec.is_touched[:, -rows:])
    double = {name: v[:, :2].double() if torch.is_tensor(v) else v for name, v in part.items()}
    image = slice(BEFORE, BEFORE + 300)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[image]
    mask[:, length - QUESTION :] = True
    attended = torch.nn.functional.scaled_dot_product_attention(
        given["query"][:, :2, image].double(), double["key"], double["value"], attn_mask=mask
    )
    for name, truth, span in (
        ("var", variant("eager", double)(), slice(length - rows, length)),
        ("mma", attended.transpose(1, 2), image),
    ):
        found = variant(name, given)()[:, span, :2]
        error = float((found - truth).norm() / truth.norm())
        if not error < 1e-5:
            raise SystemExit(f"{name} differs from the definition by {error:.2e} at {length} tokens.")


if __name__ == "__main__":
    main()
