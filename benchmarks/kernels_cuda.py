"""The kernels on a GPU: correctness against float64 first, then time against torch's fused attention.

    python -m benchmarks.kernels --device cuda             # everything, writes benchmarks/results/kernels_cuda.json
    python -m benchmarks.kernels --device cpu-interpret    # the same code at tiny sizes, without a GPU; no meaning

Four parts: prefill with VAR, decoding with VAR, prefill with MMA, and a whole model of 7B shape with random weights.
VAR touches the last 60 rows, the question, in every head; its floors are 0, so every touched row is changed, which
is the dearest case. Inputs are rotated, the cache is flushed, variants take turns, and medians are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.common import save
from benchmarks.gpu import Machine, check, compare, show
from lvlm_attn.kernels import reference
from lvlm_attn.kernels.call import AttentionCall, Memo
from lvlm_attn.kernels.spec import Geometry, KeyClass, Redistribution
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.kernels.visibility import ALL, Visibility

BEFORE, QUESTION = 35, 60


@dataclass(frozen=True)
class Sizes:
    """What is run: the full list, or one that Triton's interpreter can take."""

    prefill: tuple[int, ...] = (2900, 8000, 16000, 32000)
    decode: tuple[int, ...] = (2900, 16000)
    mma: tuple[int, ...] = (8000,)
    batches: tuple[int, ...] = (1, 8)
    heads: int = 32
    kv_heads: tuple[int, ...] = (32, 8)
    dim: int = 128
    repeats: int = 30
    inputs: int = 3


TINY = Sizes((100,), (100,), (100,), (1,), 2, (1,), 16, 1, 1)


def run(device: str, parts: list[str], write: bool = True) -> dict[str, Any]:
    """Runs the parts and returns what is written."""
    machine = Machine.of(device)
    sizes = Sizes() if machine.is_gpu else TINY
    result: dict[str, Any] = {"device": str(machine.device), "dtype": str(machine.dtype)}
    with torch.no_grad():
        if "prefill" in parts:
            result["var_prefill"] = var_prefill(machine, sizes)
        if "decode" in parts:
            result["var_decode"] = var_decode(machine, sizes)
        if "mma" in parts:
            result["mma_prefill"] = mma_prefill(machine, sizes)
    if "model" in parts:
        from benchmarks.model_cuda import whole_model

        result["whole_model"] = whole_model(machine)
    if write and machine.is_gpu:
        print(save("kernels_cuda", result))
    return result


def tensors(
    machine: Machine, batch: int, heads: int, kv_heads: int, queries: int, keys: int, dim: int, seed: int
) -> list[torch.Tensor]:
    """Random query, key and value."""
    generator = torch.Generator(machine.device).manual_seed(seed)
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return [
        torch.randn(batch, *shape, dim, generator=generator, device=machine.device, dtype=machine.dtype)
        for shape in shapes
    ]


def redistribution(machine: Machine, batch: int, length: int, queries: int) -> Redistribution:
    """A sink at the first token and at 1 % of the patches; the question's rows are touched."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.zeros(batch, length, dtype=torch.int8)
    classes[:, BEFORE : length - QUESTION] = int(KeyClass.PATCH)
    is_sink = torch.rand(batch, length, generator=generator) < 0.01
    is_sink[:, 0] = True
    classes += is_sink.to(torch.int8)
    touched = torch.zeros(batch, queries, dtype=torch.bool)
    touched[:, -QUESTION:] = True
    return Redistribution(classes.to(machine.device), touched.to(machine.device), 0.4, 0.0, 0.0)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Torch's fused attention as transformers calls it, `(batch, queries, heads, head_dim)`."""
    output = scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, enable_gqa=query.shape[1] != key.shape[1]
    )
    return output.transpose(1, 2).contiguous()


def with_mask(given: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """Torch's fused attention with a boolean mask."""
    query, key, value = given
    return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).contiguous()


def truth(
    given: list[torch.Tensor], geometry: Geometry, rows: int, heads: int = 2, **spec: Any
) -> tuple[torch.Tensor, slice, slice]:
    """The definition in float64 for the last rows and first heads: output `(1, rows, heads, dim)` and where it is."""
    query, key, value = given
    rows = min(rows, geometry.queries)
    group = query.shape[1] // key.shape[1]
    heads = max(heads, group)
    at, of_heads = slice(geometry.queries - rows, geometry.queries), slice(0, heads)
    end = Geometry(geometry.length - rows, rows, geometry.keys)
    output, _ = reference.attention(
        query[:1, of_heads, at].double(),
        key[:1, : heads // group].double(),
        value[:1, : heads // group].double(),
        scaling=query.shape[-1] ** -0.5,
        geometry=end,
        **spec,
    )
    return output.transpose(1, 2), at, of_heads


def part_of(item: Redistribution, at: slice) -> Redistribution:
    """The redistribution of some rows of the first sample."""
    return Redistribution(
        item.key_class[:1], item.is_touched[:1, at], item.removed_fraction, item.rho, item.mass_floor
    )


def packed_call(given: list[torch.Tensor], geometry: Geometry, memo: Memo, **spec: Any) -> Any:
    """The call as the registry makes it; `memo` stands for the layers that came before."""
    from lvlm_attn.kernels.triton.path import PackedCall

    query, key, value = given
    scaling = query.shape[-1] ** -0.5
    return PackedCall.of(AttentionCall(query, key, value, geometry, scaling, memo=memo), **spec)


def eager_var(given: list[torch.Tensor], item: Redistribution, geometry: Geometry) -> torch.Tensor:
    """VAR on the whole weight matrix, as the released implementations do: softmax in fp32, weights in bf16."""
    from lvlm_attn.kernels.torch_path import redistribute

    query, key, value = given
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if geometry.queries > 1:
        blocked = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill_(blocked, -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    moved, is_changed, _ = redistribute(weights, item, geometry)
    is_changed = is_changed & item.is_touched[:, None]
    return (torch.where(is_changed[..., None], moved, weights) @ value).transpose(1, 2).contiguous()


def var_prefill(machine: Machine, sizes: Sizes) -> list[dict[str, Any]]:
    """VAR in prefill: fused attention for all rows, touched rows by the kernel; against fused attention alone."""
    found = []
    for batch in sizes.batches:
        for length in sizes.prefill:
            shape = (batch, sizes.heads, sizes.heads, length, length, sizes.dim)
            sets = [tensors(machine, *shape, seed) for seed in range(sizes.inputs)]
            geometry, item = Geometry(0, length, length), redistribution(machine, batch, length, length)
            rows, memo = Rows.of(item.is_touched), Memo()

            def var(index: int) -> Any:
                call = packed_call(sets[index], geometry, memo, redistribution=item)  # noqa: B023
                return call.edited_rows(causal(*sets[index]), rows)  # noqa: B023

            plain = truth(sets[0], geometry, 3000 if length <= 3000 else 256)
            moved = truth(sets[0], geometry, plain[0].shape[1], redistribution=part_of(item, plain[1]))
            if not (plain[0] - moved[0]).norm() > 0.01 * plain[0].norm():
                raise SystemExit("The redistribution of the benchmark moves nothing.")
            error = check(machine, f"VAR prefill, {length} tokens", var(0)[:1, moved[1], moved[2]], moved[0])
            variants: dict[str, Callable[[int], Any]] = {
                "sdpa": lambda index: causal(*sets[index]),  # noqa: B023
                "var": var,
                "eager var": lambda index: eager_var(sets[index], item, geometry),  # noqa: B023
            }
            timed = compare(machine, variants, "sdpa", sizes.repeats, sizes.inputs)
            flops = 2 * batch * sizes.heads * length**2 * sizes.dim
            found += described(machine, timed, flops=flops, batch=batch, tokens=length, error=error)
            show(f"VAR prefill, batch {batch}, {length} tokens (error {error:.1e})", timed)
    return found


def var_decode(machine: Machine, sizes: Sizes) -> list[dict[str, Any]]:
    """One query over a cache: the split kernel with VAR, and without, against fused attention."""
    found = []
    for batch in sizes.batches:
        for kv_heads in sizes.kv_heads:
            for keys in sizes.decode:
                shape = (batch, sizes.heads, kv_heads, 1, keys, sizes.dim)
                sets = [tensors(machine, *shape, seed) for seed in range(sizes.inputs)]
                geometry, item = Geometry(keys - 1, 1, keys), redistribution(machine, batch, keys, 1)
                memo = Memo()

                def var(index: int) -> Any:
                    return packed_call(sets[index], geometry, memo, redistribution=item).every_row()  # noqa: B023

                def unedited(index: int) -> Any:
                    return packed_call(sets[index], geometry, Memo()).every_row()  # noqa: B023

                want, at, heads = truth(sets[0], geometry, 1, redistribution=part_of(item, slice(None)))
                error = check(machine, f"VAR decode, {keys} keys", var(0)[:1, at, heads], want)
                variants: dict[str, Callable[[int], Any]] = {
                    "sdpa": lambda index: causal(*sets[index]),  # noqa: B023
                    "var": var,
                    "kernel without edits": unedited,
                    "eager var": lambda index: eager_var(sets[index], item, geometry),  # noqa: B023
                }
                timed = compare(machine, variants, "sdpa", sizes.repeats, sizes.inputs)
                moved = 2 * batch * kv_heads * keys * sizes.dim * sets[0][0].element_size()
                about = {"batch": batch, "keys": keys, "kv_heads": kv_heads, "error": error}
                found += described(machine, timed, moved=moved, **about)
                show(
                    f"VAR decode, batch {batch}, {kv_heads} key heads, {keys} keys (error {error:.1e})", timed
                )
    return found


def mma_prefill(machine: Machine, sizes: Sizes) -> list[dict[str, Any]]:
    """Image rows read the question: the kernel, against plain causal, a boolean mask, and FlexAttention."""
    found = []
    for batch in sizes.batches:
        for length in sizes.mma:
            shape = (batch, sizes.heads, sizes.heads, length, length, sizes.dim)
            sets = [tensors(machine, *shape, seed) for seed in range(sizes.inputs)]
            geometry, memo = Geometry(0, length, length), Memo()
            group = torch.zeros(batch, length, dtype=torch.long)
            group[:, BEFORE : length - QUESTION] = 1
            group[:, length - QUESTION :] = 2
            reads = Visibility(
                group.to(machine.device), ((ALL,) * 3,) * 3, ((0, 0, 0), (0, 0, ALL), (0, 0, 0))
            )
            mask = torch.ones(length, length, dtype=torch.bool, device=machine.device).tril()
            mask[BEFORE : length - QUESTION, length - QUESTION :] = True

            def mma(index: int) -> Any:
                return packed_call(sets[index], geometry, memo, visibility=[reads]).every_row()  # noqa: B023

            def masked(index: int) -> torch.Tensor:
                return with_mask(sets[index], mask)  # noqa: B023

            first = [tensor[:1, :1].double() for tensor in sets[0]]
            want = with_mask(first, mask)
            error = check(machine, f"MMA prefill, {length} tokens", mma(0)[:1, :, :1], want)
            flex = flex_mma(machine, sets, length)
            check(machine, "FlexAttention", flex(0)[:1, :, :1], want)
            variants: dict[str, Callable[[int], Any]] = {
                "sdpa": lambda index: causal(*sets[index]),  # noqa: B023
                "mma": mma,
                "sdpa with a boolean mask": masked,
                "flex attention": flex,
            }
            timed = compare(machine, variants, "sdpa", sizes.repeats, sizes.inputs)
            flops = 4 * batch * sizes.heads * float(mask.sum()) * sizes.dim
            found += described(machine, timed, flops=flops, batch=batch, tokens=length, error=error)
            show(f"MMA prefill, batch {batch}, {length} tokens (error {error:.1e})", timed)
    return found


def flex_mma(machine: Machine, sets: list[list[torch.Tensor]], length: int) -> Callable[[int], torch.Tensor]:
    """The same visibility in FlexAttention, compiled on a GPU; its block mask is made once."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    end = length - QUESTION

    def may_read(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) | ((query >= BEFORE) & (query < end) & (key >= end))

    blocks = create_block_mask(may_read, None, None, length, length, device=str(machine.device))
    attend: Any = torch.compile(flex_attention, dynamic=False) if machine.is_gpu else flex_attention

    def run(index: int) -> torch.Tensor:
        output: torch.Tensor = attend(*sets[index], block_mask=blocks)
        return output.transpose(1, 2).contiguous()

    return run


def described(
    machine: Machine, rows: list[dict[str, Any]], *, flops: float = 0.0, moved: float = 0.0, **about: Any
) -> list[dict[str, Any]]:
    """Adds what was run, and the share of the roofline, to the rows."""
    for row in rows:
        row.update(about)
        if "ms" in row:
            row["roofline_percent"] = machine.roofline(row["ms"], flops, moved)
    return rows
