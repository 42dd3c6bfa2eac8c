"""What VAR costs inside one attention call: touched rows on top of SDPA, against full eager VAR.

One prefill of a single sample: 35 text tokens, one image, and a question of 60 tokens, whose rows are touched.
Eager VAR computes, as the released implementations do, the whole weight matrix and redistributes in it.

    python -m benchmarks.kernels [--device cpu] [--lengths 640 2900 8000] [--repeats 7] [--save]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import interleave, peak_beyond, peak_memory, ratio, save
from lvlm_attn.kernels import reference
from lvlm_attn.kernels.spec import Geometry, KeyClass, Redistribution
from lvlm_attn.kernels.torch_path import Rows, redistribute, row_outputs, row_weights, write_rows

VARIANTS = ("sdpa", "touched rows", "eager")
BEFORE, QUESTION = 35, 60


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

    def touched_rows() -> torch.Tensor:
        out = sdpa()
        rows = Rows.of(spec.is_touched)
        assert rows is not None
        mask = geometry.may_read(rows.index)
        weights = row_weights(
            rows.take(query), key, scaling=scaling, mask=None if mask is None else mask[:, None]
        )
        weights, is_changed, _ = redistribute(weights, spec, geometry)
        return write_rows(out, row_outputs(weights, value), rows, is_changed)

    def eager() -> torch.Tensor:
        out, _ = reference.attention(
            query, key, value, scaling=scaling, geometry=geometry, redistribution=spec
        )
        return out.transpose(1, 2).contiguous()

    chosen = {"sdpa": sdpa, "touched rows": touched_rows, "eager": eager}[name]

    def run() -> torch.Tensor:
        with torch.no_grad():
            out = chosen()
        if out.is_cuda:
            torch.cuda.synchronize()
        return out

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--lengths", type=int, nargs="+", default=[640, 2900, 8000])
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/kernels_<device>.json")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.memory_of:
        given = call(options.lengths[0], options.heads, options.dim, options.device)
        print(peak_beyond(variant(options.memory_of, given)))
        return

    print(f"{options.heads} heads of {options.dim}, fp32, {options.device}")
    print(f"{'tokens':>7}  {'variant':13} {'ms':>9} {'of sdpa':>8} {'eager is':>9}   peak beyond inputs")
    results = []
    for length in options.lengths:
        given = call(length, options.heads, options.dim, options.device)
        runs = {name: variant(name, given) for name in VARIANTS}
        double = {key: v.double() if torch.is_tensor(v) else v for key, v in given.items()}
        if length <= 3000:  # correctness first: fp64 by definition
            truth = variant("eager", double)()
            error = float((runs["touched rows"]() - truth).norm() / truth.norm())
            if not error < 1e-5:
                raise SystemExit(f"touched rows differ from the definition by {error:.2e} at {length} tokens")
        times = interleave(runs, options.repeats)
        for name in VARIANTS:
            memory = None
            if options.device == "cpu":
                arguments = [
                    "--lengths",
                    str(length),
                    "--heads",
                    str(options.heads),
                    "--dim",
                    str(options.dim),
                ]
                memory = peak_memory("benchmarks.kernels", [*arguments, "--memory-of", name])
            row = {
                "tokens": length,
                "variant": name,
                "ms": 1e3 * statistics.median(times[name]),
                "ratio_to_sdpa": ratio(times, name, "sdpa"),
                "eager_ratio": ratio(times, "eager", name),
                "peak_mib": memory,
            }
            results.append(row)
            shown = "not measured" if memory is None else f"{memory:.0f} MiB"
            print(
                f"{length:7d}  {name:13} {row['ms']:9.1f} {row['ratio_to_sdpa']:7.2f}x {row['eager_ratio']:8.1f}x"
                f"   {shown}"
            )
    if options.save:
        shape = {"heads": options.heads, "dim": options.dim, "repeats": options.repeats}
        print(save(f"kernels_{options.device}", {**shape, "rows": results}), file=sys.stderr)


if __name__ == "__main__":
    main()
