"""What `torch.compile` sees of a wrap: operators that it calls and does not look into.

Inside a wrap, code that is being compiled meets the attention and the hooks of single layers. Each is traced as a call
of an operator, which looks up what is to be done when it runs, exactly as the attention and the hooks do without a
compiler: one graph serves every prompt, and every wrap of the same structure. What a graph must not outlive stands in
attributes of the attention modules, which it is guarded by: their number, and which hooks there are.

Tensors that operators are given belong to the graph, which may write into their memory later. So a hook gets a copy,
and what it gives is copied.
"""

from __future__ import annotations

import itertools
from ast import literal_eval
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError, UnsupportedError

NUMBER = "_lvlm_attn_number"
"""The attribute of a module inside a wrap by which operators find it again."""

STRUCTURE = "_lvlm_attn_structure"
"""The attribute of an attention module inside a wrap that says which hooks are on the whole model."""

MOMENT = "_lvlm_attn_moment"
"""The attribute of the base model, the language model and attention modules inside a wrap that holds their `Moment`."""

LIBRARY: Any = cast("Any", torch.library.Library)("lvlm_attn", "DEF")
# Their work differs from call to call, so a CUDA graph must not replay it; inductor cuts its graphs there.
_TAGS = (torch.Tag.pt2_compliant_tag, *filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))
_GIVEN = "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor[] others, str settings, int module"
LIBRARY.define(f"attend({_GIVEN}) -> Tensor", tags=_TAGS)
LIBRARY.define(f"attend_with_weights({_GIVEN}) -> (Tensor, Tensor)", tags=_TAGS)
LIBRARY.define("act(Tensor[] given, str site, int layer, int module, int place) -> Tensor", tags=_TAGS)
LIBRARY.define("refuse(Tensor query, Tensor value, str reason) -> Tensor", tags=_TAGS)

_MODULES: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_NUMBERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
_COUNTER = itertools.count()


def number_of(module: nn.Module) -> int:
    """The number of a module, the same in every wrap of this process."""
    if module not in _NUMBERS:
        _NUMBERS[module] = next(_COUNTER)
        _MODULES[_NUMBERS[module]] = module
    return _NUMBERS[module]


def module_of(number: int) -> nn.Module:
    """The module with a number.

    Raises:
        LvlmAttnError: if there is none.
    """
    module = _MODULES.get(number)
    if module is None:
        raise LvlmAttnError(STALE)
    return module


STALE = (
    "Code that torch.compile made inside a wrap ran where that wrap does not act; call torch.compiler.reset() and "
    "compile again."
)


class Moment:
    """What a forward of a wrapped model is about to do, which graphs are guarded by.

    Attributes:
        is_answer: whether it is one generated token, of which every wrap knows all before the model is entered.
        resting: the wraps whose hooks rest, by `Bodies.place`, in words.
    """

    def __init__(self) -> None:
        self.is_answer = False
        self.resting = ""


def traced_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    *,
    backend: str,
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Tensor | None] | None:
    """Traces an attention call as a call of an operator; see `lvlm_attn.runtime.registry.attend` for arguments.

    Returns:
        Output and weights, or None if the module is of no wrapped model.
    """
    number, moment = getattr(module, NUMBER, None), getattr(module, MOMENT, None)
    # Graphs are guarded by what is read here.
    if number is None or getattr(module, STRUCTURE, None) is None or moment is None or moment.resting is None:
        return None
    others: list[Tensor] = []
    settings, reason = backend, _untraceable(query, mask)
    for name, given in kwargs.items():
        if isinstance(given, Tensor):
            settings = f"{settings}\n{name}=@{len(others)}"
            others.append(given)
        elif given is None or isinstance(given, bool | int | float | str):
            settings = f"{settings}\n{name}={given!r}"
        else:
            reason = reason or f"the model hands {name} on to its attention"
    if reason is not None:
        return torch.ops.lvlm_attn.refuse(query.detach(), value.detach(), reason), None
    call = (query, key, value, mask, others, settings, number)
    if backend == "eager":
        return cast("tuple[Tensor, Tensor]", torch.ops.lvlm_attn.attend_with_weights(*call))
    return torch.ops.lvlm_attn.attend(*call), None


def _untraceable(query: Tensor, mask: Any) -> str | None:
    if torch.is_grad_enabled() and query.requires_grad:
        return "gradients are wanted, so call it under torch.no_grad()"
    if torch.is_autocast_enabled(query.device.type):
        return "autocast is on, so load it in the type it is to compute in"
    if mask is not None and not isinstance(mask, Tensor):
        return "its attention backend is given no tensor as a mask"
    return None


@lru_cache(maxsize=4096)
def _parsed(settings: str) -> tuple[str, tuple[tuple[str, Any, bool], ...]]:
    backend, *rest = settings.split("\n")
    named = [item.partition("=") for item in rest]
    return backend, tuple(
        (name, int(text[1:]), True) if text.startswith("@") else (name, literal_eval(text), False)
        for name, _, text in named
    )


def run_attention(
    attend: Callable[..., tuple[Tensor, Tensor | None]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    others: list[Tensor],
    settings: str,
    number: int,
) -> tuple[Tensor, Tensor | None]:
    """Runs an attention call that was traced.

    Args:
        attend: runs it, with the arguments that the model gave.
        query: see `traced_attention`.
        key: see `traced_attention`.
        value: see `traced_attention`.
        mask: see `traced_attention`.
        others: tensors among the keyword arguments.
        settings: the backend and the keyword arguments.
        number: of the module.

    Returns:
        Output and weights, contiguous, in memory of their own.

    Raises:
        UnsupportedError: while a CUDA graph is captured, which would replay what was done for this one call.
    """
    _refuse_capture(query)
    backend, named = _parsed(settings)
    kwargs = {name: others[given] if is_tensor else given for name, given, is_tensor in named}
    output, weights = attend(module_of(number), query, key, value, mask, backend, kwargs)
    return output.contiguous(), None if weights is None else weights.contiguous()


def _refuse_capture(tensor: Tensor) -> None:
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UnsupportedError(
            "A CUDA graph would repeat what a wrap does to this one token; compile with mode='default', or capture "
            "without a wrap."
        )


@dataclass(frozen=True)
class Body:
    """What the hook of a site does at one layer.

    Attributes:
        run: is given tensors, and returns what becomes of the first one, or None to leave it.
        site: which site.
        layer: number of the layer.
        place: of the wrap, see `Bodies`.
    """

    run: Callable[..., Tensor | None]
    site: str
    layer: int
    place: int


class Bodies:
    """What the hooks of one wrap do.

    Attributes:
        place: tells the wraps on one model apart: a number that none of the others has.
    """

    def __init__(self) -> None:
        self.place = 0
        self._kept: dict[tuple[str, int, int, int], Body] = {}

    def keep(self, site: str, layer: int, module: nn.Module, run: Callable[..., Tensor | None]) -> Body:
        """Keeps what a hook does, for operators to find."""
        body = Body(run, site, layer, self.place)
        self._kept[site, layer, number_of(module), self.place] = body
        return body

    def find(self, site: str, layer: int, number: int, place: int) -> Body | None:
        """What a hook does, or None if it is of another wrap."""
        return self._kept.get((site, layer, number, place))


def traced_act(body: Body, module: nn.Module, *given: Tensor) -> Tensor:
    """Traces a hook of a module as a call of an operator; returns what becomes of the first tensor."""
    number = getattr(module, NUMBER)
    return cast(Tensor, torch.ops.lvlm_attn.act(list(given), body.site, body.layer, number, body.place))


def run_act(body: Body | None, given: Sequence[Tensor]) -> Tensor:
    """Runs a hook that was traced.

    Returns:
        What becomes of the first tensor, contiguous, in memory of its own.

    Raises:
        LvlmAttnError: if there is no such hook any more.
        UnsupportedError: while a CUDA graph is captured.
    """
    if body is None:
        raise LvlmAttnError(STALE)
    _refuse_capture(given[0])
    whole = torch.contiguous_format
    changed = body.run(*(one.clone(memory_format=whole) for one in given))
    return (given[0] if changed is None else changed).clone(memory_format=whole)


def _fake_attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, others: Any, settings: str, module: int
) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


def _fake_attend_with_weights(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, others: Any, settings: str, module: int
) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = query.shape
    output = query.new_empty(batch, queries, heads, value.shape[-1])
    return output, query.new_empty(batch, heads, queries, key.shape[2])


def _fake_act(given: list[Tensor], site: str, layer: int, module: int, place: int) -> Tensor:
    return torch.empty_like(given[0], memory_format=torch.contiguous_format)


def _fake_refuse(query: Tensor, value: Tensor, reason: str) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty(batch, queries, heads, value.shape[-1])


@torch.library.impl(LIBRARY, "refuse", "CompositeExplicitAutograd")
def _refuse(query: Tensor, value: Tensor, reason: str) -> Tensor:
    raise UnsupportedError(
        f"A wrapped model cannot be compiled here: {reason}; or call the model itself, without torch.compile."
    )


for _name, _fake in (
    ("attend", _fake_attend),
    ("attend_with_weights", _fake_attend_with_weights),
    ("act", _fake_act),
    ("refuse", _fake_refuse),
):
    torch.library.register_fake(f"lvlm_attn::{_name}", _fake, lib=LIBRARY)
