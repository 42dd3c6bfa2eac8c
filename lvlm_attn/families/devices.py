"""Where a model computes, also where its weights are kept elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def execution_device(module: nn.Module) -> torch.device:
    """The device that a module takes its inputs on.

    Weights that accelerate keeps in main memory or on disk stand on the device `meta` between calls; its hooks know
    where they are brought to.

    Args:
        module: a model or a part of one.

    Example:
        >>> execution_device(nn.Linear(2, 2))
        device(type='cpu')
    """
    for part in module.modules():
        for hook in _hooks(getattr(part, "_hf_hook", None)):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
        weight = next(part.parameters(recurse=False), None)
        if weight is not None and weight.device.type != "meta":
            return weight.device
    first = next(module.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _hooks(hook: Any) -> tuple[Any, ...]:
    return tuple(getattr(hook, "hooks", (hook,)))
