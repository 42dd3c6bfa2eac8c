"""The one place where transformers calls us: attention and mask functions under names of our own.

Both are registered together and checked at import. Every backend has its own name, `lvlm_attn|<backend>`, so that
the mask a model builds is always the one its own backend expects, also where `generate` builds it ahead of the
forward. `lvlm_attn` alone stands for `sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.log_sum_exp import with_log_sum_exp
from lvlm_attn.kernels.visible_path import attend_few
from lvlm_attn.runtime.active import ACTIVE, INSTALLED, TRACED, Acting, TextPass, text_pass
from lvlm_attn.runtime.attention_names import AttentionNames
from lvlm_attn.runtime.checked import Form
from lvlm_attn.runtime.collected import CollectedEdits
from lvlm_attn.runtime.continued import Continued
from lvlm_attn.runtime.corrected import wants_log_sum_exp
from lvlm_attn.runtime.edits import apply_edits
from lvlm_attn.runtime.fused import attend_fused
from lvlm_attn.runtime.mask_check import check_mask
from lvlm_attn.runtime.operators import LIBRARY, STALE, run_attention, traced_attention
from lvlm_attn.runtime.planned import Plan
from lvlm_attn.runtime.transformers_private import backend_function, is_registered, register


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
    if torch.compiler.is_compiling():
        traced = traced_attention(module, query, key, value, attention_mask, backend=backend, kwargs=kwargs)
        # Models that were made from one configuration share it, and with it the name of the attention.
        return traced or backend_function(backend, module)(
            module, query, key, value, attention_mask, **kwargs
        )
    return _attend(module, query, key, value, attention_mask, backend, kwargs)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    backend: str,
    kwargs: Mapping[str, Any],
    *,
    is_traced: bool = False,
) -> tuple[Tensor, Tensor | None]:
    def run() -> tuple[Tensor, Tensor | None]:
        return backend_function(backend, module)(module, query, key, value, attention_mask, **kwargs)

    active = ACTIVE.get()
    if len(active) != 1 or not isinstance(active[0], Acting):  # else one wrap acts, as nearly always
        bare = text_pass()
        if bare is not None:
            return _unedited(bare, cast(int, module.layer_idx), run, query, key, value)
        active = tuple(item for item in active if not isinstance(item, TextPass) and module in item.editors)
    calls = [item for item in active if isinstance(item, Acting)]
    wraps = [asked for item in calls if (asked := item.editors.get(module)) is not None]
    if not active or len(wraps) != len(calls):
        _refuse_alone(module, is_traced=is_traced)
        return run()
    for item, asked in zip(calls, wraps):
        item.reached.add(asked.note)
        if is_traced:
            item.reached.add(TRACED)
    if not any(asked.editors for asked in wraps):
        return run()
    call = calls[-1].call
    if is_traced:
        attention_mask = _without_cause(call, query, key, attention_mask, backend)
    answers = [asked.ask(item.call) for item, asked in zip(calls, wraps)]
    if call.plans is not None and len(answers) == 1:
        plan: Plan | None = call.plans.get(wraps[0].layer)
        given = call, answers[0], query, key, value, attention_mask, kwargs, backend
        output = None if plan is None else plan.attend(*given)
        if output is not None:
            return output, None
    edits = CollectedEdits.of(wraps, answers, Form.of(call, query, key))
    if edits.is_nothing:
        return run()
    attention = _attention_call(call, query, key, value, attention_mask, kwargs)
    check_mask(call, attention, backend)
    return attend_edited(run, call, edits, attention, backend)


def _unedited(
    bare: TextPass,
    index: int,
    run: Callable[[], tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """A call in a pass of our own."""
    found = run()
    bare.seen.add(index)
    if bare.capture is not None:
        bare.capture(index, query, key, value)
    return found


def _without_cause(call: Call, query: Tensor, key: Tensor, mask: Any, backend: str) -> Any:
    """None for a mask that says no more than causality.

    transformers leaves such a mask out, unless it is traced, where it cannot look at padding; backends and kernels are
    faster without.
    """
    queries, keys = query.shape[2], key.shape[2]
    is_plain = call.start == 0 and keys == queries > 1 and call.is_valid is None and not call.has_own_mask
    if not is_plain or backend != "sdpa" or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return mask

    def is_causal() -> bool:
        return bool((mask == torch.ones_like(mask[:1, :1]).tril()).all())

    return None if call.memo.shared((_without_cause, mask), is_causal) else mask


def _refuse_alone(module: nn.Module, *, is_traced: bool) -> None:
    """Refuses a call in which no wrap knows of the prompt, unless the module is of a model that is not wrapped.

    Models that were made from one configuration share it, and with it the name of the attention.
    """
    if is_traced and not any(module in wrap.editors_at for wrap in INSTALLED):
        raise LvlmAttnError(STALE)
    if ACTIVE.get() or any(module in wrap.editors_at for wrap in INSTALLED):
        raise LvlmAttnError(
            "The language model was called by itself inside a wrap; call the model that was wrapped, which "
            "knows where the images are."
        )


def _attention_call(
    call: Call, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: Mapping[str, Any]
) -> AttentionCall:
    """What every path is given, from the innermost call, which knows the geometry."""
    geometry = call.geometry(key.shape[2], kwargs.get("sliding_window"))
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    return AttentionCall(query, key, value, geometry, scaling, mask, kwargs.get("softcap"), kwargs, call.memo)


def attend_edited(
    run: Callable[[], tuple[Tensor, Tensor | None]],
    call: Call,
    edits: CollectedEdits,
    attention: AttentionCall,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """One edited call: the kernels if they can, else torch after the backend, or without it where few rows need it."""
    fused = attend_fused(run, call, edits, attention, backend=backend)
    if fused is not None:
        return fused, None
    call.kernels.count("torch")
    visible = None
    if edits.visible and not edits.extras and backend != "eager":
        visible = attend_few(attention, edits.visible)
    if visible is not None:
        return apply_edits(visible, None, call, edits, attention, is_visible=True)
    if backend == "sdpa" and wants_log_sum_exp(edits):
        output, weights, total = with_log_sum_exp(run, attention)
        Continued.plan(call, edits, attention, backend, output, total)
    else:
        (output, weights), total = run(), None
    return apply_edits(output, weights, call, edits, attention, log_sum_exp=total)


@torch.library.impl(LIBRARY, "attend", "CompositeExplicitAutograd")
def _run_traced(*given: Any) -> Tensor:
    return run_attention(partial(_attend, is_traced=True), *given)[0]


@torch.library.impl(LIBRARY, "attend_with_weights", "CompositeExplicitAutograd")
def _run_traced_with_weights(*given: Any) -> tuple[Tensor, Tensor]:
    return cast("tuple[Tensor, Tensor]", run_attention(partial(_attend, is_traced=True), *given))


NAMES = AttentionNames("lvlm_attn", attend, "Attention")
"""The names under which configurations ask for `attend`."""

NAMES.over_known()
register(NAMES.prefix, NAMES.alone(), "sdpa")
for _name in (NAMES.prefix, NAMES.over("sdpa"), NAMES.over("eager")):
    if not is_registered(_name):
        raise ImportError(
            f"transformers did not keep {_name!r} in both its attention and its mask registry; a model would "
            f"lose its causal mask. Install transformers >=5.17,<5.24."
        )
