"""Edits by the kernels while an answer is decoded: what stays the same from token to token is decided once.

A layer's sites are asked at every token. As long as they give the same objects as at the token before, and the tensors
of the call are of the same form, all that was checked and packed holds still; what grows is the number of keys alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall, Inputs
from lvlm_attn.kernels.packing import PackedEdits
from lvlm_attn.kernels.spec import Amplification, Redistribution
from lvlm_attn.runtime.active import Answers
from lvlm_attn.runtime.collected import CollectedEdits
from lvlm_attn.runtime.row_counts import counts_of

if TYPE_CHECKING:
    from lvlm_attn.kernels.triton.path import PackedCall
    from lvlm_attn.kernels.triton.steps import Steps


@dataclass(frozen=True, eq=False)
class Kept:
    """What a plan was made for.

    Attributes:
        given: what the sites of the layer said.
        backend: name of the user's backend.
        form: of the tensors of a call, see `_form`.
        settings: what the model said beside the tensors, see `_settings`.
    """

    given: Sequence[Any]
    backend: str
    form: tuple[object, ...]
    settings: tuple[object, ...]

    @staticmethod
    def of(call: AttentionCall, given: Sequence[Any], backend: str) -> Kept:
        """From a call, and what the sites said of it."""
        return Kept(given, backend, _form(call.query, call.key, call.value), _settings(call.kwargs))

    def holds(
        self,
        given: Sequence[Any],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kwargs: Mapping[str, Any],
        backend: str,
    ) -> bool:
        """Whether a call is of the same form, without gradients, and the sites gave the same objects."""
        if backend != self.backend or not all(map(is_, given, self.given)):
            return False
        if self.form != _form(query, key, value) or self.settings != _settings(kwargs):
            return False
        is_grown = query.requires_grad or key.requires_grad or value.requires_grad
        return not (is_grown and torch.is_grad_enabled())


@dataclass(frozen=True, eq=False)
class Plan(ABC):
    """How a layer's edits are computed from one generated token to the next.

    Attributes:
        kept: what it holds for.
        scaling: factor on the scores.
    """

    kept: Kept
    scaling: float

    def attend(
        self,
        call: Call,
        answers: Answers,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        kwargs: Mapping[str, Any],
        backend: str,
    ) -> Tensor | None:
        """Computes a call.

        Args:
            call: the call, of one generated token.
            answers: what the sites said.
            query: see `registry.attend`, as those that follow.
            key: see there.
            value: see there.
            mask: see there.
            kwargs: see there.
            backend: see there.

        Returns:
            `(batch, queries, heads, head_dim)`, or None, with nothing done, if this is not what was planned for.
        """
        if not self.kept.holds(answers.given, query, key, value, kwargs, backend):
            return None
        return self.go_on(call, answers, Inputs(query, key, value, self.scaling), mask, kwargs)

    @abstractmethod
    def go_on(
        self, call: Call, answers: Answers, inputs: Inputs, mask: Any, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The same for a call that is of the form it was planned for."""


@dataclass(frozen=True, eq=False)
class Planned(Plan):
    """How the kernels compute a layer's edits from one generated token to the next.

    Attributes:
        since: position from which on the visibilities among what sites said act on no query.
        moving: place of the intervention that moves weight, or None.
        amplifying: place of the one that changes scores, or None.
        steps: launch the kernels; layers with edits of one form share them.
        packed: the edits as the kernels take them.
    """

    since: int
    moving: int | None
    amplifying: int | None
    steps: Steps
    packed: PackedEdits

    @staticmethod
    def of(ours: PackedCall, edits: CollectedEdits, backend: str, others: Iterable[Any]) -> Planned:
        """A plan from the first call of one generated token, with edits of one wrap that the kernels can compute.

        Args:
            ours: the call.
            edits: its edits.
            backend: name of the user's backend.
            others: the plans of other layers.
        """
        call, specs, steps = ours.call, list(enumerate(edits.specs)), ours.steps
        known = (plan.steps for plan in others if isinstance(plan, Planned) and plan.steps.form == steps.form)
        return Planned(
            Kept.of(call, edits.given or (), backend),
            call.scaling,
            max((item.group.shape[1] for item in edits.visible), default=0),
            next((place for place, spec in specs if isinstance(spec, Redistribution)), None),
            next((place for place, spec in specs if isinstance(spec, Amplification)), None),
            next(known, steps),
            ours.edits,
        )

    def go_on(
        self, call: Call, answers: Answers, inputs: Inputs, mask: Any, kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Launches the kernels; what they need of the mask is known from the call."""
        if call.start < self.since:
            return None
        query, key, value, scaling = inputs
        steps, memo, keys = self.steps, call.memo, key.shape[2]
        if not steps.is_at(memo, keys):
            geometry = call.geometry(keys, kwargs.get("sliding_window"))
            steps.move(AttentionCall(query, key, value, geometry, scaling, memo=memo), self.packed)
        call.kernels.count("triton")
        moving, amplifying, device = self.moving, self.amplifying, query.device
        return steps.run(
            inputs,
            self.packed,
            None if moving is None else counts_of(answers.layers[moving], device),
            None if amplifying is None else counts_of(answers.layers[amplifying], device),
        )


def _form(query: Tensor, key: Tensor, value: Tensor) -> tuple[object, ...]:
    """What is looked at in the tensors of a call, the number of keys aside."""
    batch, kv_heads, _, dim = key.shape
    return (
        query.shape,
        batch,
        kv_heads,
        dim,
        value.shape[3],
        query.device,
        query.dtype,
        key.dtype,
        value.dtype,
        query.stride(),
        key.stride(3),
        value.stride(3),
        type(query),
        type(key),
        type(value),
    )


def _settings(kwargs: Mapping[str, Any]) -> tuple[object, ...]:
    """What is looked at in what the model says beside the tensors, by kernels and by `sdpa` of transformers."""
    get = kwargs.get
    return (
        get("sliding_window"),
        get("scaling"),
        get("softcap"),
        get("dropout") or None,
        get("is_causal"),
        get("output_attentions"),
        get("s_aux") is None,
        get("position_bias") is None,
        get("cache") is None,
    )
