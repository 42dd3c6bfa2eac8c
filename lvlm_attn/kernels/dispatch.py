"""Which path computes edited attention, the Triton kernels or torch, and what is said about it.

Triton is taken where the tensors lie on a GPU and the kernels can do what is asked; torch everywhere else. The
choice is forced by `wrap(..., kernels="torch")` or the environment variable `LVLM_ATTN_KERNELS`; the argument
counts where both are given. Triton itself is imported only when it is used.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.kernels.call import AttentionCall
from lvlm_attn.kernels.packing import unsupported_edits, unsupported_visibility
from lvlm_attn.kernels.spec import Amplification, Redistribution
from lvlm_attn.kernels.visibility import Visibility

VARIABLE = "LVLM_ATTN_KERNELS"
CHOICES = ("auto", "torch", "triton")
MAX_HEAD_DIM = 256
OLDEST_TRITON = (3, 4)
"""As in the extra `gpu`; torch 2.8 brings it."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(eq=False)
class Dispatch:
    """The choice of one wrap, and what came of it.

    Attributes:
        wanted: `"auto"`, `"torch"` or `"triton"`.
        used: how many attention calls with edits each path computed.
        fallbacks: why torch was taken although the kernels were wanted; each reason is warned of once.
        reasons: why the kernels cannot run on a device, as far as it was asked.

    Example:
        >>> Dispatch.of("torch").describe()
        'torch, as asked for'
    """

    wanted: str = "auto"
    used: dict[str, int] = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    reasons: dict[torch.device, str | None] = field(default_factory=dict)

    @staticmethod
    def of(argument: str = "auto") -> Dispatch:
        """The choice from an argument and the environment.

        Raises:
            LvlmAttnError: if either names no path.
        """
        return Dispatch(requested(argument))

    def check(self, device: torch.device) -> None:
        """Refuses a forced path that cannot run.

        Raises:
            LvlmAttnError: if Triton is forced and there is neither a GPU nor its interpreter.
        """
        reason = unavailable(device) if self.wanted == "triton" else None
        if reason is not None:
            raise LvlmAttnError(
                f"kernels='triton' cannot run on {device.type}: {reason}; use kernels='auto', or set "
                f"TRITON_INTERPRET=1 before Python starts to run the kernels slowly on a CPU."
            )

    def may_use(self, query: Tensor) -> bool:
        """Whether the kernels are to be tried on the device of a call."""
        if self.wanted == "torch" or (self.wanted == "auto" and not query.is_cuda):
            return False
        device = query.device
        if device not in self.reasons:
            self.reasons[device] = unavailable(device)
        reason = self.reasons[device]
        if reason is not None:
            self.fall_back(reason)
        return reason is None

    def fall_back(self, reason: str) -> None:
        """Takes note of a call that goes to torch, and warns the first time."""
        if reason not in self.fallbacks:
            self.fallbacks.append(reason)
            warnings.warn(
                f"The Triton kernels are not used: {reason}. The torch path gives the same result, slower; "
                f"kernels='torch' silences this.",
                RuntimeWarning,
                stacklevel=2,
            )

    def count(self, path: str) -> None:
        """Counts a call with edits under the path that computed it."""
        self.used[path] = self.used.get(path, 0) + 1

    def describe(self) -> str:
        """What was picked, in a few words."""
        picked = " and ".join(sorted(self.used, reverse=True))
        if self.fallbacks:
            return f"{picked or 'torch'} ({'; '.join(self.fallbacks)})"
        if self.wanted == "torch":
            return "torch, as asked for"
        return picked or "none used"


def requested(argument: str = "auto") -> str:
    """The path asked for by an argument, else by the environment.

    Raises:
        LvlmAttnError: if either names no path.
    """
    for name, value in (("kernels", argument), (VARIABLE, os.environ.get(VARIABLE, "auto").strip().lower())):
        if value not in CHOICES:
            raise LvlmAttnError(
                f"{name}={value!r} is no kernel path.{closest(str(value), CHOICES)} Choose {', '.join(CHOICES)}."
            )
        if value != "auto":
            return value
    return "auto"


def unavailable(device: torch.device) -> str | None:
    """Says why the kernels cannot run on a device at all, or None if they can."""
    try:
        import triton

        if _version(triton.__version__) < OLDEST_TRITON:
            return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST_TRITON))}"
        from lvlm_attn.kernels.triton.common import is_interpreted
    except ImportError:
        return "Triton is not installed"
    if device.type != "cuda":
        return None if device.type == "cpu" and is_interpreted() else "there is no GPU"
    if is_interpreted():
        return None
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than sm_80"
    return None


def _version(text: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def unsupported_call(call: AttentionCall) -> str | None:
    """Says why the kernels cannot compute an attention call, or None if they can."""
    query, key, value = call.query, call.key, call.value
    if query.dtype not in _DTYPES or not query.dtype == key.dtype == value.dtype:
        return f"queries, keys and values are of {query.dtype}, {key.dtype} and {value.dtype}"
    if not query.shape[-1] == key.shape[-1] == value.shape[-1] or query.shape[-1] > MAX_HEAD_DIM:
        return (
            f"heads are {query.shape[-1]} wide and values {value.shape[-1]}, above {MAX_HEAD_DIM} or unequal"
        )
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        return "gradients are asked for, and the kernels have none"
    if call.softcap is not None:
        return "the model bounds its scores"
    if call.kwargs.get("s_aux") is not None:
        return "the model has learned sinks"
    if call.kwargs.get("dropout"):
        return "attention dropout is on"
    if not call.scaling > 0:
        return f"scores are scaled by {call.scaling}"
    return None


def unsupported_spec(
    visibilities: Sequence[Visibility],
    amplifications: Sequence[Amplification],
    redistributions: Sequence[Redistribution],
) -> str | None:
    """Says why the kernels cannot do what is asked, or None if they can."""
    reason = unsupported_edits(amplifications, redistributions)
    return reason if reason is not None or not visibilities else unsupported_visibility(visibilities)


def picked(device: torch.device) -> str:
    """What `auto` or the environment picks on a device, in words, for `lvlm-attn doctor`."""
    wanted = requested()
    if wanted == "torch":
        return f"torch, as {VARIABLE} asks for"
    if device.type != "cuda" and wanted == "auto":
        return "torch: there is no GPU"
    reason = unavailable(device)
    if reason is not None:
        return f"torch: {reason}"
    return "triton" if device.type == "cuda" else "triton, interpreted"
