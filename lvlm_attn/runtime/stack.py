"""What this thread is in the middle of, read off its stack.

A mark that is set and taken off again stays where an interrupt falls between the two; the stack is always right.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def is_running(function: Callable[..., Any], **variables: Any) -> bool:
    """Whether this thread is in a call of `function` in which local variables have these very values.

    Args:
        function: a plain function or method.
        **variables: names and values; values count by identity.

    Example:
        >>> def outer(what):
        ...     return is_running(outer, what=what), is_running(outer, what="another")
        >>> outer("this one")
        (True, False)
    """
    code = function.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is code:
            found = frame.f_locals
            if all(name in found and found[name] is value for name, value in variables.items()):
                return True
        frame = frame.f_back
    return False
