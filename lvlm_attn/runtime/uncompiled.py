"""Running a compiled model as it was written, and the parts of a wrap that are never compiled.

Code that `torch.compile` has made of a module calls the hooks that were there when it was made and no others, so inside
a wrap it would run as if there were none. What is compiled within reach of the model is therefore set aside. What is
compiled inside the wrap, or by a function of the user's around the model, meets our hooks: the model's configuration
names another attention inside a wrap, which compiled code checks, so it is traced anew.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn

from lvlm_attn.runtime.operators import MOMENT

Called = TypeVar("Called", bound=Callable[..., Any])

_FORWARDS = ("forward", "_old_forward")
"""Where a module's forward is found on the instance; the second is accelerate's, beneath its own."""


def compiled_parts(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """What is compiled in a model: the module, the attribute that says so, and what stands for plain running there.

    Args:
        model: the model as its user holds it.
    """
    for module in model.modules():
        if getattr(module, "_compiled_call_impl", None) is not None:
            yield module, "_compiled_call_impl", None  # module.compile()
        inner = vars(module)["_modules"].get("_orig_mod")
        if inner is not None:
            if getattr(vars(module).get("forward"), "func", None) is not _called:
                yield module, "forward", partial(_called, inner)  # torch.compile(module)
            continue
        for name in _FORWARDS:
            plain = _uncompiled(vars(module).get(name))
            if plain is not None:
                yield module, name, plain  # module.forward = torch.compile(module.forward)


def by_python(function: Called) -> Called:
    """A function that Python runs, also where `torch.compile` meets it: its graph ends before, another begins after."""
    disable: Any = torch.compiler.disable
    why = "what a wrap does once in a forward depends on the prompt, and is run by Python"
    # torch before 2.7 takes no reason.
    return cast("Called", disable(function, **({"reason": why} if _HAS_REASON else {})))


def unless_answer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook on the base model or the language model that Python runs, and that graphs of generated tokens leave out.

    Nothing is left to be done there: the `Session` has begun the call of such a token before the model is entered.
    """
    inner = by_python(function)

    def hook(module: nn.Module, *given: Any) -> Any:
        if torch.compiler.is_compiling() and getattr(module, MOMENT).is_answer:
            return None
        return inner(module, *given)

    hook.__module__ = function.__module__
    return called_by_python(hook)


def called_by_python(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that is run by Python where Python calls it, and still traced where a graph calls it."""
    private = sys.modules.get("torch._C._dynamo.eval_frame")
    skip_code = getattr(private, "skip_code", None)
    if skip_code is not None:
        skip_code(cast("Any", hook).__code__)
    return hook


def is_by_python(function: Callable[..., Any]) -> bool:
    """Whether a function is one that `by_python` made, or the user kept from being compiled."""
    return bool(getattr(function, "_torchdynamo_disable", False))


_HAS_REASON = "reason" in inspect.signature(torch.compiler.disable).parameters


def _called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _uncompiled(function: Any) -> Callable[..., Any] | None:
    """What a function was compiled from, or None if it was not.

    Functions around a compiled one copy its attributes, so it is told by where it was defined.
    """
    if is_by_python(function):
        return None
    home = getattr(function, "__globals__", {}).get("__name__")
    return (
        getattr(function, "_torchdynamo_orig_callable", None) if home == "torch._dynamo.eval_frame" else None
    )
