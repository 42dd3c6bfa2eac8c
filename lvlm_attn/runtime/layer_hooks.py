"""Hooks on single layers, through which interventions see and change the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.context import Call, Layer
from lvlm_attn.interventions.summary import add
from lvlm_attn.runtime.active import Editor
from lvlm_attn.runtime.arguments import entering_hidden
from lvlm_attn.runtime.hooks import Hooks

CallOf = Callable[[], Call | None]
"""Gives the running call of the wrap, or None where it does not act."""


def install_layer_hooks(
    hooks: Hooks, target: Target, site: str, index: int, editors: Sequence[Editor], call_of: CallOf
) -> None:
    """Puts the hooks of a site on a layer, in the order in which a forward reaches them."""
    layer = target.parts.layers[index]
    if site == "observe":
        hooks.before(layer, _observer(index, editors, call_of), with_kwargs=True)
    elif site == "scale_heads":
        projection = cast("nn.Module", target.parts.output_projections[index])
        hooks.before(projection, _scaler(index, editors, call_of, target.heads))
    elif site == "modules":
        keeper, adder = _adder(index, editors, call_of)
        hooks.before(layer, keeper, with_kwargs=True)
        hooks.after(cast("nn.Module", target.parts.attentions[index]), adder)
    elif site == "frozen":
        hooks.after(layer, _freezer(index, editors, call_of), with_kwargs=True)


def _observer(index: int, editors: Sequence[Editor], call_of: CallOf) -> Any:
    def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = call_of()
        if call is not None:
            hidden = entering_hidden(args, kwargs)
            for item, state in editors:
                item.observe(Layer(index, call, state), hidden)

    return observe


def _scaler(index: int, editors: Sequence[Editor], call_of: CallOf, count: int) -> Any:
    def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        call = call_of()
        if call is None:
            return None
        joined = args[0]
        heads = joined.view(*joined.shape[:-1], count, -1)
        before = heads
        for item, state in editors:
            scaled = item.scale_heads(Layer(index, call, state), heads)
            if scaled is not None:
                add(state.counts, "rows_scaled", scaled.shape[0] * scaled.shape[1], index)
                heads = scaled
        return None if heads is before else (heads.reshape(joined.shape), *args[1:])

    return scale


def _adder(index: int, editors: Sequence[Editor], call_of: CallOf) -> tuple[Any, Any]:
    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = call_of()
        if call is not None:
            call.entering = entering_hidden(args, kwargs)

    def add_modules(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = call_of()
        if call is None or call.entering is None:
            return None
        before = call.entering
        first = output[0] if isinstance(output, tuple) else output
        attended = first
        for item, state in editors:
            function = item.modules(Layer(index, call, state))
            added = None if function is None else function(before.to(attended.device) + attended)
            if added is not None:
                add(state.counts, "rows_added_to", added.shape[0] * added.shape[1], index)
                attended = attended + added.to(attended.dtype)
        if attended is first:
            return None
        return (attended, *output[1:]) if isinstance(output, tuple) else attended

    return keep, add_modules


def _freezer(index: int, editors: Sequence[Editor], call_of: CallOf) -> Any:
    def freeze(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        call = call_of()
        if call is None:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        for item, state in editors:
            is_frozen = item.frozen(Layer(index, call, state))
            if is_frozen is not None:
                add(state.counts, "rows_frozen", is_frozen.sum(), index)
                is_frozen = is_frozen.to(hidden.device)[..., None]
                hidden = torch.where(is_frozen, entering_hidden(args, kwargs).to(hidden.device), hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return freeze
