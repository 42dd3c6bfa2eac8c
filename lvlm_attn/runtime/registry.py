"""The one place where transformers calls us: attention and mask functions under names of our own.

A name in the attention registry without its twin in the mask registry makes transformers drop the causal mask
without a word, so both are registered together and checked at import. Every backend has its own name,
`lvlm_attn|<backend>`, so that the mask a model builds is always the one its own backend expects, also where
`generate` builds it ahead of the forward. `lvlm_attn` alone stands for `sdpa`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.interventions.call import ACTIVE, Call, TextPass, active_calls
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.visible_path import attend_few
from lvlm_attn.runtime.collected import CollectedEdits, Edit
from lvlm_attn.runtime.edits import apply_edits
from lvlm_attn.runtime.fused import attend_fused
from lvlm_attn.runtime.mask_check import check_mask

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
    """Runs the user's backend, then computes again the rows that interventions change; or our kernels instead.

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
    function = backend_function(backend, module)

    def run() -> tuple[Tensor, Tensor | None]:
        return function(module, query, key, value, attention_mask, **kwargs)

    index = cast(int, module.layer_idx)
    if isinstance(active[-1], TextPass):
        output, weights = run()
        active[-1].seen.add(index)
        if active[-1].capture is not None:
            active[-1].capture(index, query, key, value)
        return output, weights
    calls = active_calls()
    acting = [
        Edit(call.layer(index, place), item) for call in calls for place, item in call.editors.get(index, ())
    ]
    if not acting:
        return run()
    edits = CollectedEdits.of(acting)
    if edits.is_nothing:
        return run()
    attention = _attention_call(calls[-1], query, key, value, attention_mask, kwargs)
    check_mask(calls[-1], attention, backend)
    return _attend_edited(run, calls[-1], edits, attention, backend)


def _attention_call(
    call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Mapping[str, Any]
) -> AttentionCall:
    """What every path is given, from the innermost call, which knows the geometry."""
    geometry = call.geometry(key.shape[2], kwargs.get("sliding_window"))
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return AttentionCall(query, key, value, geometry, scaling, mask, kwargs.get("softcap"), kwargs, call.memo)


def _attend_edited(
    run: Callable[[], tuple[Tensor, Tensor | None]],
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """The kernels if they can, else the backend (or, where few rows attend to others, not even that) and torch."""
    fused = attend_fused(run, call, edits, attention, backend=backend)
    if fused is not None and fused.is_done:
        return fused.output, None
    call.kernels.count("torch")
    visible = None if fused is None else fused.output
    if visible is None and edits.visible and not edits.extras and backend != "eager":
        visible = attend_few(attention, edits.visible)
    if visible is not None:
        return apply_edits(visible, None, call, edits, attention, is_visible=True)
    output, weights = run()
    return apply_edits(output, weights, call, edits, attention)


def backend_function(backend: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function of transformers behind a backend's name, for a module."""
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
