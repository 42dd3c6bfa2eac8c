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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import pack_edits, pack_visibility
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification, Geometry, Redistribution
from lvlm_attn.kernels.triton import decode as triton_decode
from lvlm_attn.kernels.triton import path as triton_path
from lvlm_attn.kernels.triton import prefill as triton_prefill
from lvlm_attn.kernels.triton import readout as triton_readout
from lvlm_attn.kernels.triton import rows as triton_rows
from lvlm_attn.kernels.triton.path import PackedCall
from lvlm_attn.kernels.triton.tiles import SHARED_MEMORY
from lvlm_attn.kernels.visibility import ALL, Visibility

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "cdna": GPUTarget("hip", "gfx942", 64),
}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int64: "i64",
}
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
        read_rows = Readout(touched, torch.zeros(1, 640), "heads", column_sums=True, entropy=True)
        mean = Readout(touched, rows="mean")
        edits = pack_edits(call.amplification, call.redistribution, geometry, query.device)
        for wanted in (read_rows, mean):
            yield lambda wanted=wanted: triton_readout.read(
                attention,
                wanted,
                packed=pack_visibility([visible], geometry, query.device),
                edits=edits,
                flags=torch.zeros(1, queries, dtype=torch.int8),
            )
        return
    counts = torch.zeros(3, dtype=torch.float64)
    if what in ("table", "reach", "decode"):
        yield lambda: call.every_row(counts)
    if what in ("rows", "reach"):
        rows = triton_path.Rows.of(touched)
        yield lambda: call.edited_rows(torch.empty(1, queries, 8, head_dim, dtype=BITS[bits]), rows, counts)


def recorded(launch: Callable[[], object], chip: str) -> list[tuple[Any, dict[str, Any]]]:
    """The kernels a launcher starts, each with its arguments by name, as if the tensors lay on the chip."""
    seen: list[tuple[Any, dict[str, Any]]] = []

    def record(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        seen.append((kernel, dict(zip(kernel.arg_names, args)) | kwargs))

    modules = (triton_path, triton_prefill, triton_rows, triton_decode, triton_readout)
    before = triton.JITFunction.run, [module.chip_of for module in modules], triton_rows.splits_for
    triton.JITFunction.run = record
    triton_rows.splits_for = lambda *_: 2
    for module in modules:
        module.chip_of = lambda _: chip
    try:
        launch()
    finally:
        triton.JITFunction.run, chips, triton_rows.splits_for = before
        for module, chip_of in zip(modules, chips):
            module.chip_of = chip_of
    return seen


def compiled(kernel: Any, arguments: dict[str, Any], chip: str) -> dict[str, Any]:
    """Compiles one kernel; what it needs of the chip."""
    options = {key: arguments[key] for key in ("num_warps", "num_stages") if key in arguments}
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(kernel.params):
        name, given = parameter.name, arguments[parameter.name]
        is_free = not parameter.do_not_specialize
        if parameter.is_constexpr or given is None or (is_free and type(given) is int and given == 1):
            signature[name], constants[name] = "constexpr", given
        elif isinstance(given, torch.Tensor):
            signature[name] = "*" + TYPES[given.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(given, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32"
            if is_free and given % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    begun = time.process_time()
    binary = triton.compile(source, target=TARGETS[chip], options=options)
    seconds = round(time.process_time() - begun, 1)
    tile = [arguments.get(key) for key in ("BLOCK_M", "BLOCK_N", "num_warps", "num_stages")]
    found = {"kernel": kernel.fn.__name__, "shared": binary.metadata.shared, "tile": tile, "seconds": seconds}
    return found | (_resources(binary.asm["cubin"]) if "cubin" in binary.asm else {})


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


def misfits(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kernels that need more shared memory than there is, or on sm_90 spill at the head sizes that matter most."""
    return [
        line
        for line in lines
        if line["shared"] > SHARED_MEMORY[line["chip"]]
        or (line["chip"] == "sm_90" and line["head_dim"] in (64, 128) and (line["stack"] or line["local"]))
    ]


def main(chip: str, *rest: str) -> list[dict[str, Any]]:
    """Compiles the cases of a chip and prints a line for each kernel; equal kernels are compiled once."""
    cases = CASES[chip]
    if rest and rest[0] == "all":
        cases = [(dim, bits, what) for what in WHAT for bits in BITS for dim in HEAD_DIMS]
    elif rest:
        cases = [(int(dim), int(bits), what) for dim, bits, what in (text.split(":") for text in rest)]
    done: set[str] = set()
    lines = []
    for head_dim, bits, what in cases:
        for launch in calls(head_dim, bits, what):
            for kernel, arguments in recorded(launch, chip):
                plain = {k: str(getattr(v, "dtype", v)) for k, v in arguments.items()}
                key = kernel.fn.__name__ + json.dumps(plain, sort_keys=True)
                if key in done:
                    continue
                done.add(key)
                case = {"chip": chip, "head_dim": head_dim, "bits": bits, "what": what}
                lines.append(case | compiled(kernel, arguments, chip))
                print(json.dumps(lines[-1]), flush=True)
    return lines


if __name__ == "__main__":
    assert not os.environ.get("TRITON_INTERPRET"), "the interpreter compiles nothing"
    if found := misfits(main(*sys.argv[1:])):
        sys.exit("These kernels do not fit:\n" + "\n".join(map(json.dumps, found)))
