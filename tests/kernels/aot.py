"""Compiles the kernels for GPUs that are not there, with the arguments their launchers really give them.

Run as a process of its own, without `TRITON_INTERPRET`: `python -m tests.kernels.aot sm_90 [all | 64:32:table ...]`
prints a JSON line per kernel: its name, the case, shared memory, and registers and stack where the tools say them. It
fails if one does not fit. `make aot` compiles every configuration for every chip.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import fake_driver
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.triton import correct as triton_correct
from lvlm_attn.kernels.triton import path as triton_path
from lvlm_attn.kernels.triton import prefill as triton_prefill
from lvlm_attn.kernels.triton import readout as triton_readout
from lvlm_attn.kernels.triton import rows as triton_rows
from lvlm_attn.kernels.triton.path import PackedCall
from lvlm_attn.kernels.triton.tiles import SHARED_MEMORY
from lvlm_attn.kernels.visibility import ALL, Visibility

BITS = {16: torch.bfloat16, 32: torch.float32}
HEAD_DIMS = (32, 64, 80, 96, 128, 256)
# (head_dim, bits, what the call asks for): the cases compiled in tests; "all" takes the whole grid.
CASES = {
    "sm_90": [
        (64, 16, "rows"),
        (128, 16, "rows"),
        (64, 16, "reach"),
        (128, 16, "table"),
        (128, 16, "reach"),
        (64, 16, "decode"),
        (128, 16, "decode"),
        (64, 32, "decode"),
        (64, 16, "readout"),
        (128, 16, "readout"),
    ],
    "sm_80": [
        (128, 16, "table"),
        (128, 16, "rows"),
        (256, 16, "table"),
        (80, 32, "rows"),
        (128, 16, "decode"),
        (128, 32, "readout"),
    ],
    "cdna": [
        (128, 16, "table"),
        (128, 16, "rows"),
        (256, 32, "table"),
        (128, 16, "decode"),
        (128, 16, "readout"),
    ],
}
WHAT = ("rows", "table", "reach", "decode", "readout")


def calls(head_dim: int, bits: int, what: str) -> Iterator[Callable[[], object]]:
    """Functions that launch the kernels of a case, on tensors that are never read."""
    queries = 4 if what == "decode" else 640

    def tensor(heads: int, length: int) -> torch.Tensor:
        return torch.empty(1, heads, length, head_dim, dtype=BITS[bits])

    query, key, value = tensor(8, queries), tensor(4, 640), tensor(4, 640)
    geometry = Geometry(640 - queries, queries, 640, torch.ones(1, 640, dtype=torch.bool))
    group = torch.arange(640)[None] % 3
    reach = 7 if what == "reach" else ALL
    visible = Visibility(
        group,
        ((ALL, ALL, ALL), (ALL, reach, 0), (ALL, ALL, ALL)),
        ((0, 0, 0), (ALL, 0, 0), (0, reach, 0)),
        strength=0.5 if what == "reach" else 1.0,
    )
    touched = torch.zeros(1, queries, dtype=torch.bool)
    touched[:, -min(queries, 40) :] = True
    attention = AttentionCall(query, key, value, geometry, scaling=head_dim**-0.5)
    call = PackedCall.of(
        attention,
        visibility=[] if what == "rows" else [visible],
        amplification=Amplification(touched, torch.ones(1, 640), heads=torch.ones(8))
        if what != "rows"
        else None,
        redistribution=Redistribution(torch.zeros(1, 640, dtype=torch.int8), touched, 0.4, 0.5, 0.2),
    )
    if what == "readout":
        for kind in ("heads", "mean"):
            yield lambda kind=kind: call.read(Readout(touched, rows=kind))
        return
    counts = {name: torch.zeros(3, dtype=torch.float64) for name in ("moved", "amplified")}
    if what in ("table", "reach", "decode"):
        yield lambda: call.every_row(**counts)
    if what in ("rows", "reach"):
        output = torch.empty(1, queries, 8, head_dim, dtype=BITS[bits])
        yield lambda: call.edited_rows(output, Rows.of(touched), **counts)


def compiled(launch: Callable[[], object], chip: str) -> Iterator[dict[str, Any]]:
    """Compiles the kernels that a launcher starts, as if the tensors lay on the chip; what they need of it."""
    seen: list[Any] = []
    run = triton.JITFunction.run

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append(run(kernel, *args, grid=grid, warmup=True, **kwargs))

    modules = (triton_path, triton_prefill, triton_rows, triton_correct, triton_readout)
    before = [module.chip_of for module in modules]
    triton.JITFunction.run = record
    for module in modules:
        module.chip_of = lambda _: chip
    try:
        launch()
    finally:
        triton.JITFunction.run = run
        for module, chip_of in zip(modules, before):
            module.chip_of = chip_of
    for binary in seen:
        found = {"hash": binary.hash, "kernel": binary.src.fn.__name__}
        found["shared"] = binary.metadata.shared
        yield found | (
            _resources(binary.asm["cubin"]) if "cubin" in binary.asm else _stack(binary.asm["amdgcn"])
        )


def _resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        text = subprocess.run(
            [tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True
        )
    found = {key: re.search(rf"\b{key}:(\d+)", text.stdout) for key in ("REG", "STACK", "LOCAL")}
    return {key.lower(): int(value[1]) for key, value in found.items() if value}


def _stack(assembly: str) -> dict[str, int]:
    found = re.search(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    return {"stack": int(found[1]) if found else -1, "local": 0}


def misfits(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernels that need more shared memory than there is, or spill at the head sizes that matter most."""
    return [
        line
        for line in lines
        if line["shared"] > SHARED_MEMORY[line["chip"]]
        or (line["head_dim"] in (64, 128) and (line["stack"] or line["local"]))
    ]


def main(chip: str, *rest: str) -> list[dict[str, Any]]:
    """Compiles the cases of a chip and prints a line for each kernel; equal kernels are compiled once."""
    cases = CASES[chip]
    if rest and rest[0] == "all":
        cases = [(dim, bits, what) for what in WHAT for bits in BITS for dim in HEAD_DIMS]
    elif rest:
        cases = [(int(dim), int(bits), what) for dim, bits, what in (text.split(":") for text in rest)]
    fake_driver.install(chip)
    done: set[str] = set()
    lines = []
    for head_dim, bits, what in cases:
        for launch in calls(head_dim, bits, what):
            for found in compiled(launch, chip):
                if found["hash"] in done:
                    continue
                done.add(found.pop("hash"))
                lines.append({"chip": chip, "head_dim": head_dim, "bits": bits, "what": what} | found)
                print(json.dumps(lines[-1]), flush=True)
    return lines


if __name__ == "__main__":
    assert not os.environ.get("TRITON_INTERPRET"), "the interpreter compiles nothing"
    if found := misfits(main(*sys.argv[1:])):
        sys.exit("These kernels do not fit:\n" + "\n".join(map(json.dumps, found)))
