"""The one place where transformers calls us: attention and mask functions under names of our own.

A name in the attention registry without its twin in the mask registry makes transformers drop the causal mask
without a word, so both are registered together and checked at import. Every backend has its own name,
`lvlm_attn|<backend>`, so that the mask a model builds is always the one its own backend expects, also where
`generate` builds it ahead of the forward. `lvlm_attn` alone stands for `sdpa`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_attn.call import ACTIVE, Call, TextPass, active_calls
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.intervention import Intervention, Layer
from lvlm_attn.kernels.torch_path import (
    Rows,
    mask_rows,
    redistribute,
    row_outputs,
    row_weights,
    write_rows,
)

NAME = "lvlm_attn"
_KNOWN = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


def registered_name(backend: str) -> str:
    """The name under which a backend runs with interventions; registers it if it is new.

    Raises:
        UnsupportedError: if transformers has no mask function for the backend.
    """
    name = f"{NAME}|{backend}"
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        _register(name, backend)
    return name


def own_backend(implementation: str) -> str | None:
    """The backend behind one of our names, or None if the name is not ours."""
    if implementation == NAME:
        return "sdpa"
    return implementation.removeprefix(f"{NAME}|") if implementation.startswith(f"{NAME}|") else None


def _register(name: str, backend: str) -> None:
    if backend not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        raise UnsupportedError(
            f"Attention backend {backend!r} has no mask function in transformers, so causality cannot be kept; "
            f"load the model with attn_implementation='sdpa'."
        )
    ALL_ATTENTION_FUNCTIONS.register(name, partial(attend, backend=backend))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    *,
    backend: str,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Runs the user's backend, then computes again the rows that interventions change.

    Args:
        module: the attention module.
        query: `(batch, heads, queries, head_dim)`.
        key: `(batch, kv_heads, keys, head_dim)`.
        value: `(batch, kv_heads, keys, head_dim)`.
        attention_mask: what the backend's mask function made.
        backend: the user's backend.
        **kwargs: what else the model passes on (`scaling`, `dropout`, `sliding_window`, ...).

    Returns:
        Output `(batch, queries, heads, head_dim)`, and the weights if the backend gives them, edited too.
    """
    active = ACTIVE.get()
    if not active:
        raise LvlmAttnError(
            "The language model was called by itself inside a wrap; call the model that was wrapped, which "
            "knows where the images are."
        )
    function = _backend_function(backend, module)
    output, weights = function(module, query, key, value, attention_mask, **kwargs)
    index = cast(int, module.layer_idx)
    if isinstance(active[-1], TextPass):
        active[-1].seen.add(index)
        return output, weights
    calls = active_calls()
    edits = [
        Edit(call.layer(index, place), item) for call in calls for place, item in call.editors.get(index, ())
    ]
    if not edits:
        return output, weights
    return _edit(output, weights, calls[-1], edits, query, key, value, attention_mask, kwargs)


class Edit(NamedTuple):
    """An intervention at the layer as it sees it."""

    layer: Layer
    item: Intervention


def _edit(
    output: Tensor,
    full: Tensor | None,
    call: Call,
    edits: list[Edit],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    """Computes the touched rows again, with all edits in order, and writes those that changed."""
    specs = [item.reweigh(layer) for layer, item in edits]
    touched = [spec.is_touched for spec in specs if spec is not None]
    is_free = any(item.overrides("edit_weights") for _, item in edits)
    if is_free:
        _refuse_above_limit(query, key, call.edit_limit, int(edits[0].layer))
        rows = Rows.of(torch.ones_like(query[:, 0, :, 0], dtype=torch.bool))
    elif all(item is touched[0] for item in touched):
        rows = call.rows_of(touched[0]) if touched else None
    else:
        rows = Rows.of(torch.stack(touched).any(0))
    if rows is None:
        return output, full
    geometry = call.geometry(key.shape[2], kwargs.get("sliding_window"))
    weights = row_weights(
        rows.take(query),
        key,
        scaling=kwargs.get("scaling") or query.shape[-1] ** -0.5,
        mask=mask_rows(mask, rows, geometry),
        softcap=kwargs.get("softcap"),
    )
    is_changed = torch.zeros(weights.shape[:-1], dtype=torch.bool, device=weights.device)
    for (layer, item), spec in zip(edits, specs):
        if spec is not None:
            new, is_row, moved = redistribute(weights, spec, geometry)
            is_row &= spec.is_touched.gather(1, rows.index)[:, None]
            _count(layer.stats, int(layer), is_row, moved, spec.is_touched)
            # Rows that stay are not written back, so with a single edit their weights need not be kept.
            weights = new if len(edits) == 1 else torch.where(is_row[..., None], new, weights)
            is_changed |= is_row
        if item.overrides("edit_weights"):
            edited = item.edit_weights(layer, weights)
            if edited.shape != weights.shape:
                raise LvlmAttnError(
                    f"{item.title}.edit_weights returned shape {tuple(edited.shape)} at layer {int(layer)}; it "
                    f"must keep {tuple(weights.shape)}, which is (batch, heads, queries, keys)."
                )
            if edited is not weights:
                weights, is_changed = edited, torch.ones_like(is_changed)
    output = write_rows(output, row_outputs(weights, value), rows, is_changed)
    if full is not None:
        full = write_rows(full.transpose(1, 2), weights, rows, is_changed).transpose(1, 2)
    return output, full


def _count(stats: dict[Any, Any], layer: int, is_row: Tensor, moved: Tensor, is_touched: Tensor) -> None:
    """Adds up, per layer: rows changed, rows that could be, and the weight moved. No value leaves the device."""
    changed = is_row.sum(dtype=torch.float64)
    possible = is_touched.sum(dtype=torch.float64) * is_row.shape[1]
    mass = (moved * is_row).sum(dtype=torch.float64)
    counts = torch.stack((changed, possible, mass))
    stats[layer] = stats[layer] + counts if layer in stats else counts


def _refuse_above_limit(query: Tensor, key: Tensor, limit: int, layer: int) -> None:
    batch, heads, queries, _ = query.shape
    size = batch * heads * queries * key.shape[2] * 4
    if size > limit:
        raise UnsupportedError(
            f"edit_weights at layer {layer} would hold a weight matrix of {size / 2**20:.0f} MiB "
            f"({batch} x {heads} x {queries} x {key.shape[2]} in fp32), above the limit of "
            f"{limit / 2**20:.0f} MiB; shorten the prompt, use the reweigh site, or pass "
            f"wrap(..., edit_limit=bytes)."
        )


def _backend_function(backend: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if backend == "eager":
        # Eager attention is in no registry: every modeling file defines its own.
        for kind in type(module).__mro__:
            function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
            if function is not None:
                return cast("Callable[..., tuple[Tensor, Tensor | None]]", function)
        raise UnsupportedError(
            f"{type(module).__name__} has no eager attention function; load the model with "
            f"attn_implementation='sdpa'."
        )
    return cast("Callable[..., tuple[Tensor, Tensor | None]]", ALL_ATTENTION_FUNCTIONS[backend])


for _backend in _KNOWN:
    if _backend in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        registered_name(_backend)
_register(NAME, "sdpa")
for _name in (NAME, f"{NAME}|sdpa", f"{NAME}|eager"):
    if (
        _name not in ALL_ATTENTION_FUNCTIONS.valid_keys()
        or _name not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()
    ):
        raise ImportError(
            f"transformers did not keep {_name!r} in both its attention and its mask registry; a model would "
            f"lose its causal mask. Install transformers >=5.17,<6."
        )
