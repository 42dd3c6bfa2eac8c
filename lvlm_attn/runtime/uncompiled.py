"""Running a compiled model as it was written.

Code that `torch.compile` has made of a module calls the hooks that were there when it was made and no others, so inside
a wrap it would run as if there were none. What is compiled within reach of the model is therefore set aside. What is
not in reach (a function of the user's around the model) is refused: the model's configuration names another attention
inside a wrap, which compiled code checks, so it is traced anew; what cannot be traced is run by Python, and meets
`refuse_compiled_caller`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from lvlm_attn.errors import UnsupportedError

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
        inner = dict(module.named_children()).get("_orig_mod")
        if inner is not None:
            yield module, "forward", partial(_called, inner)  # torch.compile(module)
            continue
        for name in _FORWARDS:
            plain = _uncompiled(vars(module).get(name))
            if plain is not None:
                yield module, name, plain  # module.forward = torch.compile(module.forward)


def refuse_tracing() -> None:
    """Called wherever a wrap acts, so that nothing that holds for its length gets into compiled code.

    Raises:
        UnsupportedError: while `torch.compile` traces, which then leaves the code to Python, or, with `fullgraph=True`,
            says so.
    """
    if torch.compiler.is_compiling():
        raise UnsupportedError(_REFUSAL)


def refuse_compiled_caller() -> None:
    """Called where a model is entered: under `torch.compile` each function from here on would be compiled by itself.

    Raises:
        UnsupportedError: if something that was compiled calls the model.
    """
    refuse_tracing()
    private = sys.modules.get("torch._C._dynamo.eval_frame")
    current = getattr(private, "get_eval_frame_callback", None)
    if current is not None and callable(current()):
        raise UnsupportedError(_REFUSAL)


_REFUSAL = (
    "A wrapped model was called by something that torch.compile made, whose code holds for longer than a wrap; call "
    "the model itself inside the block, or wrap what was compiled: wrap(torch.compile(model), ...) runs uncompiled."
)


def _called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return module(*args, **kwargs)


def _uncompiled(function: Any) -> Callable[..., Any] | None:
    """What a function was compiled from, or None if it was not.

    Functions around a compiled one copy its attributes, so it is told by where it was defined.
    """
    home = getattr(function, "__globals__", {}).get("__name__")
    return (
        getattr(function, "_torchdynamo_orig_callable", None) if home == "torch._dynamo.eval_frame" else None
    )
