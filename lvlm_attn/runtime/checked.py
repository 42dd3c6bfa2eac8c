"""What sites answer, before anything is made of it: of the right kind and shape, or refused with one sentence.

Shapes are known without a device. Values are looked at where that waits for nothing, once for each object. Answers for
one row stand for all rows of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError, shown
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Call, Layer
from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.extra import ExtraKeys
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.kernels.readouts import Readout
from lvlm_attn.kernels.spec import Amplification, KeyClass, Redistribution, Reweighing
from lvlm_attn.kernels.visibility import Visibility

Answer = TypeVar("Answer", Amplification, Redistribution, Visibility, Readout)


class Form(NamedTuple):
    """What answers have to fit in one attention call.

    Attributes:
        batch: rows of the batch.
        queries: queries of the call.
        kv_heads: heads of the keys.
        head_dim: their width.
        memo: what the layers of the call share.
    """

    batch: int
    queries: int
    kv_heads: int
    head_dim: int
    memo: Memo

    @staticmethod
    def of(call: Call, query: Tensor, key: Tensor) -> Form:
        """The form of a call with queries `(batch, heads, queries, dim)` and keys `(batch, kv_heads, keys, dim)`."""
        return Form(query.shape[0], query.shape[2], key.shape[1], key.shape[3], call.memo)


class _Asked(NamedTuple):
    """Which site of which method answered, and where."""

    item: Intervention
    site: str
    layer: Layer

    def refuse(self, came: str, wanted: str) -> NoReturn:
        at = "" if self.layer.index is None else f" at layer {self.layer.index}"
        came = came if at else came.removesuffix(",")
        raise LvlmAttnError(f"{self.item.title}.{self.site} returned {came}{at}; {wanted}.")


_LOOKED_AT: WeakSet[Any] = WeakSet()
"""Answers whose values were looked at."""


def checked_answer(site: str, item: Intervention, layer: Layer, given: Any, form: Form) -> Any:
    """What a site in the attention answered, for all rows of the batch; None is no answer.

    Raises:
        LvlmAttnError: if it is no answer to that site, or does not fit the call.
    """
    return None if given is None else _CHECKS[site](_Asked(item, site, layer), given, form)


def checked_weights(item: Intervention, layer: Layer, given: Any, weights: Tensor) -> Tensor:
    """What `edit_weights` made of `(batch, heads, queries, keys)`.

    Raises:
        LvlmAttnError: if it is nothing of that shape.
    """
    shape = "(batch, heads, queries, keys)"
    return _of_same_shape(
        _Asked(item, "edit_weights", layer), given, weights, shape, "return the weights themselves"
    )


def checked_heads(item: Intervention, layer: Layer, given: Any, heads: Tensor) -> Tensor | None:
    """What `scale_heads` made of `(batch, queries, heads, head_dim)`, in their dtype, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    return _checked_tensor(
        _Asked(item, "scale_heads", layer), given, heads, "(batch, queries, heads, head_dim)"
    )


def checked_embeds(item: Intervention, call: Layer, given: Any, embeds: Tensor) -> Tensor | None:
    """What `edit_embeds` made of `(batch, queries, hidden)`, in their dtype, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    return _checked_tensor(_Asked(item, "edit_embeds", call), given, embeds, "(batch, queries, hidden)")


def checked_logits(item: Intervention, call: Layer, given: Any, logits: Tensor) -> Tensor | None:
    """What `edit_logits` made of `(batch, kept, vocabulary)`, in a precision of its own, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    if given is None:
        return None
    axes = "(batch, kept, vocabulary)"
    return _of_same_shape(_Asked(item, "edit_logits", call), given, logits, axes, "return None")


def checked_added(item: Intervention, layer: Layer, given: Any, attended: Tensor) -> Tensor | None:
    """What the function of `modules` made of `(batch, queries, hidden)`, in their dtype, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    asked = _Asked(item, "modules(layer)(hidden)", layer)
    return _checked_tensor(asked, given, attended, "(batch, queries, hidden)")


def checked_modules(item: Intervention, layer: Layer, given: Any) -> Callable[[Tensor], Tensor | None] | None:
    """What `modules` answered: a function, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    if given is not None and not callable(given):
        _Asked(item, "modules", layer).refuse(
            _told(given), "it must be a function of the hidden states, or None"
        )
    return given  # type: ignore[no-any-return]


def checked_frozen(item: Intervention, layer: Layer, given: Any, hidden: Tensor) -> Tensor | None:
    """What `frozen` answered, `(batch, queries)` booleans for all rows of the batch, or None.

    Raises:
        LvlmAttnError: if it is anything else.
    """
    if given is None:
        return None
    batch, queries = hidden.shape[:2]
    _need_rows(_Asked(item, "frozen", layer), "", given, batch, queries)
    return given if given.shape[0] == batch else given.expand(batch, -1)  # type: ignore[no-any-return]


def _checked_tensor(asked: _Asked, given: Any, before: Tensor, axes: str) -> Tensor | None:
    if given is None or given is before:
        return given
    return _of_same_shape(asked, given, before, axes, "return None").to(before.dtype)


def _of_same_shape(asked: _Asked, given: Any, before: Tensor, axes: str, to_leave: str) -> Tensor:
    if not isinstance(given, Tensor):
        asked.refuse(_told(given), f"it must be a tensor {axes}; to change nothing, {to_leave}")
    if given.shape != before.shape:
        asked.refuse(f"shape {tuple(given.shape)}", f"it must keep {tuple(before.shape)}, which is {axes}")
    if not given.is_floating_point():
        asked.refuse(
            f"a tensor of {given.dtype}", f"it must be of floating point, as the {before.dtype} given"
        )
    return given


def _reweighing(asked: _Asked, given: Any, form: Form) -> Reweighing:
    if isinstance(given, Amplification):
        _need_rows(asked, "is_touched", given.is_touched, form.batch, form.queries)
        for name in ("gain", "bias"):
            if getattr(given, name) is not None:
                _need_positions(asked, name, getattr(given, name), form)
        if given.heads is not None and not isinstance(given.heads, Tensor):
            asked.refuse(
                _told(given.heads, "heads"), "they must be a tensor (heads,) or (batch, heads), or None"
            )
        names = ["is_touched", "gain", "bias"]
        if given.heads is not None and given.heads.dim() == 2:
            names.append("heads")
        return _for_all_rows(given, names, form)
    if isinstance(given, Redistribution):
        _need_rows(asked, "is_touched", given.is_touched, form.batch, form.queries)
        _need_positions(asked, "key_class", given.key_class, form, are_whole=True)
        _need_below(asked, given, "key_class", given.key_class, len(KeyClass), "a KeyClass")
        return _for_all_rows(given, ["is_touched", "key_class"], form)
    asked.refuse(_told(given), "it must be an Amplification, a Redistribution, or None")


def _visibility(asked: _Asked, given: Any, form: Form) -> Visibility:
    if not isinstance(given, Visibility):
        asked.refuse(_told(given), "it must be a Visibility, or None")
    _need_positions(asked, "group", given.group, form, are_whole=True)
    if given.touches is not None:
        _need_positions(asked, "touches", given.touches, form)
    _need_below(asked, given, "group", given.group, given.groups, "a row of its table")
    return _for_all_rows(given, ["group", "touches"], form)


def _readout(asked: _Asked, given: Any, form: Form) -> Readout:
    if not isinstance(given, Readout):
        asked.refuse(_told(given), "it must be a Readout, or None")
    _need_rows(asked, "is_read", given.is_read, form.batch, form.queries)
    if given.key_class is not None:
        _need_positions(asked, "key_class", given.key_class, form, are_whole=True)
    return _for_all_rows(given, ["is_read", "key_class"], form)


def _extra_keys(asked: _Asked, given: Any, form: Form) -> ExtraKeys:
    if not isinstance(given, ExtraKeys):
        asked.refuse(_told(given), "it must be ExtraKeys, or None")
    extra = given.position.shape[-1] if isinstance(given.position, Tensor) and given.position.dim() else 0
    keys = form.batch, form.kv_heads, extra
    for name, axes, shape in (
        ("position", "(batch, extra)", (form.batch, extra)),
        ("key", "(batch, kv_heads, extra, head_dim)", (*keys, form.head_dim)),
        ("value", "(batch, kv_heads, extra, head_dim)", keys),
        ("first", "(batch, queries)", (form.batch, form.queries)),
        ("stop", "(batch, queries)", (form.batch, form.queries)),
    ):
        found = getattr(given, name)
        # Values may be of another width than keys.
        own = (
            found.shape[:3]
            if isinstance(found, Tensor) and name == "value"
            else getattr(found, "shape", None)
        )
        if not isinstance(found, Tensor) or found.dim() != axes.count(",") + 1 or tuple(own or ()) != shape:
            wanted = ", ".join(map(str, shape)) + (", head_dim" if name == "value" else "")
            asked.refuse(_told(found, name), f"it must be ({wanted}), which is {axes}")
    if given.own_bias is not None:
        _need_positions(asked, "own_bias", given.own_bias, form)
    return given


_CHECKS: dict[str, Callable[[_Asked, Any, Form], Any]] = {
    "reweigh": _reweighing,
    "visibility": _visibility,
    "readout": _readout,
    "extra_keys": _extra_keys,
}


def _need_rows(asked: _Asked, name: str, given: Any, batch: int, queries: int) -> None:
    """Refuses what is no boolean for each query, for each row of the batch or for all."""
    if isinstance(given, Tensor) and given.dtype == torch.bool and given.dim() == 2:
        rows, count = given.shape
        if count == queries and rows in (batch, 1):
            return
    asked.refuse(_told(given, name), f"it must be booleans ({batch}, {queries}), which is (batch, queries)")


def _need_positions(asked: _Asked, name: str, given: Any, form: Form, *, are_whole: bool = False) -> None:
    """Refuses what is no number for each position, for each row of the batch or for all."""
    if isinstance(given, Tensor) and given.dim() == 2 and given.shape[0] in (form.batch, 1):
        is_whole = not (given.is_floating_point() or given.is_complex() or given.dtype == torch.bool)
        if is_whole or not are_whole:
            return
    numbers = "whole numbers" if are_whole else "numbers"
    asked.refuse(
        _told(given, name), f"it must be {numbers} ({form.batch}, positions), which is (batch, positions)"
    )


def _need_below(asked: _Asked, answer: Any, name: str, given: Tensor, count: int, each: str) -> None:
    """Refuses numbers that are none from 0 to below `count`, where that is known without waiting."""
    if answer in _LOOKED_AT or not reading_is_free(given.device) or not given.numel():
        return
    least, most = (int(found) for found in given.aminmax())
    if least < 0 or most >= count:
        asked.refuse(
            f"{name} with the number {least if least < 0 else most}",
            f"each must be {each}, from 0 to {count - 1}",
        )
    _LOOKED_AT.add(answer)


def _for_all_rows(answer: Answer, names: Sequence[str], form: Form) -> Answer:
    """An answer with one row where the batch has several, with that row for each of them; itself if there is none."""
    if form.batch == 1:
        return answer
    short = [
        name for name in names if getattr(answer, name) is not None and getattr(answer, name).shape[0] == 1
    ]
    if not short:
        return answer

    def expanded() -> Answer:
        fields = {name: getattr(answer, name).expand(form.batch, -1) for name in short}
        return replace(answer, **fields)

    # Layers that share an answer share what is made of it.
    return form.memo.shared((_for_all_rows, answer), expanded)


def _told(value: Any, name: str = "") -> str:
    """What came, in a few words: by itself, or as a field."""
    if isinstance(value, Tensor):
        return f"{name or 'a tensor'} of shape {tuple(value.shape)} and {value.dtype}"
    if value is None:
        return f"{name}=None" if name else "None"
    return f"{name}={shown(value)}" if name else f"{shown(value)}, of type {type(value).__name__},"
