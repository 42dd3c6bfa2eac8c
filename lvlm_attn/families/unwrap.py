"""Looking through what users put around a model: adapters (`peft`) and `torch.compile`."""

from __future__ import annotations

from typing import Any, cast

from torch import nn


def unwrapped(module: nn.Module) -> nn.Module:
    """The module itself, without the adapters and the compilation around it.

    Args:
        module: a model, or a part of one.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> unwrapped(layer) is layer
        True
    """
    # Neither name may be looked up by getattr alone: both kinds of wrapper hand unknown names on to what they wrap.
    compiled = dict(module.named_children()).get("_orig_mod")
    if compiled is not None:
        return unwrapped(compiled)
    adapted = getattr(module, "get_base_model", None)
    if not callable(adapted):
        return module
    inner = cast("Any", adapted)()
    return unwrapped(inner) if isinstance(inner, nn.Module) and inner is not module else module
