"""What the host may know of values on a device, and what that costs."""

from __future__ import annotations

import torch

FREE = frozenset({"cpu"})
"""Kinds of device whose values are read without waiting. Tests empty it, to see what would be waited for on a GPU."""


def reading_is_free(device: torch.device) -> bool:
    """Whether reading a value (`bool(tensor)`, `int(tensor)`, `tensor.tolist()`) costs nothing on a device.

    On a GPU it waits for all work before it, so inside a layer nothing may be read. A short cut that depends on a value
    is taken only where this is True, and elsewhere the same result is computed without it:

        if reading_is_free(x.device) and not bool(x.any()):
            return output
    """
    return device.type in FREE
