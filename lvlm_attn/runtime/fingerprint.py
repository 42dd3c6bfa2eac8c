"""Telling whether a model would compute the same again: its modules, its weights, and the settings of torch.

Where that cannot be told, None is given, and whoever asks computes again. That holds for models with forward hooks of
others, with forwards of their own on single modules (as accelerate puts them), compiled modules, and weights that are
not plain tensors in memory. Weights are told by identity, place and version; since writing through `.data` changes
none of these (adapters are merged so), some elements of each are compared, too. A change that passes through `.data`
and touches none of those is not noticed.
"""

from __future__ import annotations

import enum
import hashlib
import sys
from collections.abc import Hashable, Iterable, Sequence
from types import FunctionType, NoneType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from lvlm_attn.runtime.transformers_private import attention_functions, is_capturing_hook

OWN = "_lvlm_attn"
"""What the names of attributes begin with that wraps put on modules, and that no forward reads."""

SAMPLED = 64
"""Elements of each weight that are compared."""

_SIMPLE = (bool, int, float, complex, str, bytes, NoneType, enum.Enum, torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))
_PLAIN_TENSORS = (Tensor, nn.Parameter, nn.Buffer)


class Structure(NamedTuple):
    """The modules of a model.

    Attributes:
        key: which modules, of which types, with which attributes, and the functions they call by name.
        is_training: whether any of them is in training mode, in which two runs may differ.
    """

    key: Hashable
    is_training: bool


def structure_of(model: nn.Module) -> Structure | None:
    """The modules of a model and their settings; None where something stands between them that cannot be compared."""
    if cast("Any", nn.modules.module)._has_any_global_hook():
        return None
    parts: list[Hashable] = []
    kinds: dict[type[nn.Module], None] = {}
    seen: set[int] = set()
    is_training = False
    for module in model.modules():
        own = vars(module)
        if "forward" in own or own.get("_compiled_call_impl") is not None or _is_hooked(module):
            return None
        is_training = is_training or module.training
        kinds[type(module)] = None
        names = (name for name in own if name not in _INTERNAL and not name.startswith(OWN))
        more = tuple((name, _plain(own[name], seen)) for name in names)
        parts.append((id(module), type(module), module.training, more))
    return Structure((tuple(parts), _functions(kinds), attention_functions()), is_training)


def weights_of(model: nn.Module) -> tuple[Hashable, list[Tensor]] | None:
    """What tells the weights of a model: identity, place and version of each, and some elements of each.

    Returns:
        A key, and tensors to compare by content; None if a weight cannot be read where it lies.
    """
    told: list[Hashable] = []
    sampled: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            if type(tensor) not in _PLAIN_TENSORS or not _is_readable(tensor):
                return None
            told.append(_tensor(tensor))
            sampled.setdefault((tensor.device, tensor.dtype), []).append(_sample(tensor.detach()))
    return tuple(told), [torch.cat(pieces) for pieces in sampled.values()]


def digest(tensors: Sequence[Tensor]) -> bytes:
    """A hash of what tensors hold, which costs one wait for each device they lie on."""
    at: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        at.setdefault(tensor.device, []).append(tensor.detach().contiguous().flatten().view(torch.uint8))
    found = hashlib.blake2b(
        repr([(tensor.shape, tensor.dtype) for tensor in tensors]).encode(), digest_size=32
    )
    for pieces in at.values():
        found.update(memoryview(cast("Any", torch.cat(pieces).cpu().numpy())))
    return found.digest()


def arithmetic(device: torch.device) -> Hashable:
    """The settings of torch on which rounding depends."""
    cuda, kind = cast("Any", torch.backends.cuda), device.type
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.backends.mkldnn.enabled,
        torch.backends.cudnn.allow_tf32,
        cuda.matmul.allow_tf32,
        cuda.matmul.allow_bf16_reduced_precision_reduction,
        cuda.matmul.allow_fp16_reduced_precision_reduction,
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether hooks of others stand on a module. Those of wraps are silent here; collecting ones do not count."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(not _is_ours(hook) and not is_capturing_hook(hook) for hook in hooks)


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith(__name__.rpartition(".")[0] + ".")


def _plain(value: Any, seen: set[int]) -> Hashable:
    """An attribute by its content where it is plain, by its identity where it is not."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, Tensor):
        return _tensor(value) if _is_readable(value) else id(value)
    if id(value) in seen:
        return id(value)
    if isinstance(value, dict):
        return tuple((_plain(key, seen), _plain(item, seen)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return tuple(_plain(item, seen) for item in value)
    if isinstance(value, set | frozenset):
        return frozenset(_plain(item, seen) for item in value)
    if hasattr(value, "to_dict") and hasattr(value, "__dict__"):  # a configuration, which modules share
        seen.add(id(value))
        return id(value), _plain(vars(value), seen)
    return id(value)


def _functions(kinds: Iterable[type[nn.Module]]) -> tuple[Hashable, ...]:
    """The forwards of some types, and the functions beside them that they may call."""
    modules = dict.fromkeys(kind.__module__ for kind in kinds)
    beside = [
        value
        for name in modules
        for value in vars(sys.modules.get(name, sys)).values()
        if isinstance(value, FunctionType)
    ]
    return (*(kind.forward for kind in kinds), *beside)


def _is_readable(tensor: Tensor) -> bool:
    return not (tensor.is_meta or tensor.is_inference()) and tensor.layout == torch.strided


def _tensor(tensor: Tensor) -> Hashable:
    return id(tensor), tensor.data_ptr(), tensor._version, tensor.dtype, tensor.device, tensor.shape


def _sample(tensor: Tensor) -> Tensor:
    """Some elements of a tensor, from its beginning to its end."""
    flat = tensor.reshape(-1)  # a view of almost every weight
    return flat[:: max(len(flat) // SAMPLED, 1) | 1] if len(flat) else flat
