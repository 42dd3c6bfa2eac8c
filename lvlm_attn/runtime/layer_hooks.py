"""Hooks on single layers, through which interventions see and change the residual stream.

Each hook is a body, which acts when it is called, and what a module is given as its hook: that calls the body, or is
traced by `torch.compile` as a call of an operator that finds the body when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.context import Call, Layer
from lvlm_attn.interventions.sites import is_in_prompts
from lvlm_attn.interventions.summary import add
from lvlm_attn.runtime.active import Editor
from lvlm_attn.runtime.arguments import entering_hidden, with_hidden
from lvlm_attn.runtime.checked import checked_added, checked_frozen, checked_heads, checked_modules
from lvlm_attn.runtime.hooks import Hooks
from lvlm_attn.runtime.operators import Bodies, Body, traced_act
from lvlm_attn.runtime.uncompiled import called_by_python

CallOf = Callable[[], Call | None]
"""Gives the running call of the wrap, or None where it does not act."""


def install_layer_hooks(
    hooks: Hooks,
    target: Target,
    site: str,
    index: int,
    editors: Sequence[Editor],
    call_of: CallOf,
    bodies: Bodies,
) -> None:
    """Puts the hooks of a site on a layer, in the order in which a forward reaches them."""
    layer = target.parts.layers[index]
    if site == "observe":
        observe = _entering(bodies.keep(site, index, layer, _observer(index, editors, call_of)))
        if rests(site, editors):
            hooks.before_prompts(layer, observe)
        else:
            hooks.before(layer, observe, with_kwargs=True)
    elif site == "scale_heads":
        projection = cast("nn.Module", target.parts.output_projections[index])
        scaler = _scaler(index, editors, call_of, target.heads)
        hooks.before(projection, _projecting(bodies.keep(site, index, projection, scaler)))
    elif site == "modules":
        attention = cast("nn.Module", target.parts.attentions[index])
        keeper, adder = _adder(index, editors, call_of)
        hooks.before(layer, _entering(bodies.keep("entering", index, layer, keeper)), with_kwargs=True)
        hooks.after(attention, _attended(bodies.keep(site, index, attention, adder)))
    elif site == "frozen":
        freezer = _freezer(index, editors, call_of)
        hooks.after(layer, _left(bodies.keep(site, index, layer, freezer)), with_kwargs=True)


def rests(site: str, editors: Sequence[Editor]) -> bool:
    """Whether the hook of a site has nothing to do while an answer is decoded."""
    return site == "observe" and all(is_in_prompts(item.observe) for item, _ in editors)


def _entering(body: Body) -> Any:
    """A hook before a layer, whose body looks at what enters and changes nothing."""

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = entering_hidden(args, kwargs)
        if torch.compiler.is_compiling():
            return with_hidden(args, kwargs, traced_act(body, module, hidden))
        body.run(hidden)
        return None

    return called_by_python(enter)


def _projecting(body: Body) -> Any:
    """A hook before an output projection."""

    def project(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if torch.compiler.is_compiling():
            return (traced_act(body, module, args[0]), *args[1:])
        changed = body.run(args[0])
        return None if changed is None else (changed, *args[1:])

    return called_by_python(project)


def _attended(body: Body) -> Any:
    """A hook after the attention of a layer."""

    def attended(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        is_traced = torch.compiler.is_compiling()
        changed = traced_act(body, module, first) if is_traced else body.run(first)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return called_by_python(attended)


def _left(body: Body) -> Any:
    """A hook after a layer."""

    def left(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        entered = entering_hidden(args, kwargs)
        is_traced = torch.compiler.is_compiling()
        changed = traced_act(body, module, hidden, entered) if is_traced else body.run(hidden, entered)
        if changed is None:
            return None
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return called_by_python(left)


def _observer(index: int, editors: Sequence[Editor], call_of: CallOf) -> Any:
    def observe(hidden: Tensor) -> None:
        call = call_of()
        for item, state in editors:
            if call is not None and (call.is_prompt or not is_in_prompts(item.observe)):
                item.observe(Layer(index, call, state), hidden)

    return observe


def _scaler(index: int, editors: Sequence[Editor], call_of: CallOf, count: int) -> Any:
    def scale(joined: Tensor) -> Tensor | None:
        call = call_of()
        if call is None:
            return None
        heads = joined.view(*joined.shape[:-1], count, -1)
        before = heads
        for item, state in editors:
            layer = Layer(index, call, state)
            scaled = checked_heads(item, layer, item.scale_heads(layer, heads), heads)
            if scaled is not None:
                add(state.counts, "rows_scaled", scaled.shape[0] * scaled.shape[1], index)
                heads = scaled
        return None if heads is before else heads.reshape(joined.shape)

    return scale


def _adder(index: int, editors: Sequence[Editor], call_of: CallOf) -> tuple[Any, Any]:
    def keep(hidden: Tensor) -> None:
        call = call_of()
        if call is not None:
            call.entering = hidden

    def add_modules(first: Tensor) -> Tensor | None:
        call = call_of()
        if call is None or call.entering is None:
            return None
        before, attended = call.entering, first
        for item, state in editors:
            layer = Layer(index, call, state)
            function = checked_modules(item, layer, item.modules(layer))
            if function is None:
                continue
            added = checked_added(item, layer, function(before.to(attended.device) + attended), attended)
            if added is not None:
                add(state.counts, "rows_added_to", added.shape[0] * added.shape[1], index)
                attended = attended + added
        return None if attended is first else attended

    return keep, add_modules


def _freezer(index: int, editors: Sequence[Editor], call_of: CallOf) -> Any:
    def freeze(hidden: Tensor, entered: Tensor) -> Tensor | None:
        call = call_of()
        if call is None:
            return None
        before = hidden
        for item, state in editors:
            layer = Layer(index, call, state)
            is_frozen = checked_frozen(item, layer, item.frozen(layer), hidden)
            if is_frozen is not None:
                add(state.counts, "rows_frozen", is_frozen.sum(), index)
                is_frozen = is_frozen.to(hidden.device)[..., None]
                hidden = torch.where(is_frozen, entered.to(hidden.device), hidden)
        return None if hidden is before else hidden

    return freeze
