"""The calls of the language model that are running now, and which wraps act in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Call, Layer, State
from lvlm_attn.interventions.sites import ATTENTION_SITES
from lvlm_attn.runtime.operators import LIBRARY, Bodies, run_act
from lvlm_attn.runtime.stack import is_running


class Editor(NamedTuple):
    """An intervention of a wrap, and what it holds there."""

    item: Intervention
    state: State


class Answers(NamedTuple):
    """What the sites in the attention of one layer say of a call.

    Attributes:
        layers: the layer as each intervention sees it.
        given: what each site said, in the order of `Asked.questions`.
    """

    layers: list[Layer]
    given: list[Any]


@dataclass(frozen=True, eq=False)
class Asked:
    """The interventions of a wrap with a site in the attention of one layer.

    Attributes:
        layer: number of the layer.
        editors: the interventions, in order; empty where there is none.
        questions: what is asked at every call, site by site: the site, the place of the intervention, its method.
        is_free: whether any changes the whole matrix of weights.
        note: what says in `Acting.reached` that the attention was reached.
    """

    layer: int
    editors: tuple[Editor, ...]
    questions: tuple[tuple[str, int, Callable[[Layer], Any]], ...]
    is_free: bool
    note: tuple[str, int]

    @staticmethod
    def of(layer: int, editors: Sequence[Editor]) -> Asked:
        """What some interventions override; `edit_weights` is called later, with weights."""
        questions = tuple(
            (site, place, getattr(item, site))
            for site in ATTENTION_SITES
            for place, (item, _) in enumerate(editors)
            if site != "edit_weights" and item.overrides(site)
        )
        is_free = any(item.overrides("edit_weights") for item, _ in editors)
        return Asked(layer, tuple(editors), questions, is_free, ("attention", layer))

    def ask(self, call: Call) -> Answers:
        """Calls every site once."""
        layers = [Layer(self.layer, call, state) for _, state in self.editors]
        return Answers(layers, [method(layers[place]) for _, place, method in self.questions])


Editors = Mapping[nn.Module, Asked]
"""For every attention module of a model, the interventions with a site in it."""


class Installed(Protocol):
    """A wrap that is on a model."""

    editors_at: Editors
    bodies: Bodies


INSTALLED: WeakSet[Installed] = WeakSet()
"""The wraps of this process."""


@dataclass(frozen=True, eq=False)
class Acting:
    """A call in which a wrap acts.

    Attributes:
        call: the call.
        editors: the wrap's own mapping, which also tells wraps apart.
        reached: the sites of layers that were reached so far, by site and layer; `TRACED` if one was by an operator.
    """

    call: Call
    editors: Editors
    reached: set[tuple[str, int]] = field(default_factory=set)


TRACED = ("traced", -1)
"""Stands among the sites that a call reached if it ran code that `torch.compile` made."""


@dataclass(frozen=True, eq=False)
class Silent:
    """A call in which the wrap with these editors does not act, and others may."""

    editors: Editors


@dataclass(eq=False)
class TextPass:
    """A pass of our own in which no intervention acts: over the prompt without its images, or over all of it.

    Attributes:
        seen: layers whose attention went through the registry.
        capture: called for every layer with its index and its query, key and value (see `registry.attend`).
    """

    seen: set[int] = field(default_factory=set)
    capture: Callable[[int, Tensor, Tensor, Tensor], None] | None = None


ACTIVE: ContextVar[tuple[Acting | Silent | TextPass, ...]] = ContextVar("lvlm_attn_active", default=())
"""The calls running in this thread or task, outermost wrap first."""


def acting() -> tuple[Acting, ...]:
    """The calls whose sites are to act; none during a text-only pass."""
    return () if text_pass() is not None else tuple(item for item in ACTIVE.get() if isinstance(item, Acting))


def text_pass() -> TextPass | None:
    """The pass without interventions that is running, or None."""
    active = ACTIVE.get()
    found = active[-1] if active else None
    return found if isinstance(found, TextPass) and _is_alive(found) else None


def own_call(editors: Editors) -> Acting | None:
    """The running call of the wrap with these editors."""
    active = ACTIVE.get()
    if len(active) == 1:  # no pass of our own can be running
        first = active[0]
        return first if isinstance(first, Acting) and first.editors is editors else None
    return next((item for item in acting() if item.editors is editors), None)


def others(editors: Editors) -> tuple[Acting | Silent | TextPass, ...]:
    """What is running, without the wrap with these editors, and without passes that an interrupt left behind."""
    active = ACTIVE.get()
    return active and tuple(
        item
        for item in active
        if (_is_alive(item) if isinstance(item, TextPass) else item.editors is not editors)
    )


def without_interventions(
    function: Callable[[], object], capture: Callable[[int, Tensor, Tensor, Tensor], None] | None = None
) -> TextPass:
    """Calls a function that makes a pass of our own, in which no intervention acts.

    Args:
        function: makes the pass.
        capture: see `TextPass`.

    Returns:
        What was seen.
    """
    running = TextPass(capture=capture)
    before = ACTIVE.get()
    try:
        ACTIVE.set((*before, running))
        function()
    finally:
        ACTIVE.set(before)
    return running


def _is_alive(running: TextPass) -> bool:
    """Whether a pass is still going on; an interrupt may have left it without ending it."""
    return is_running(without_interventions, running=running)


@torch.library.impl(LIBRARY, "act", "CompositeExplicitAutograd")
def _act(given: list[Tensor], site: str, layer: int, module: int, place: int) -> Tensor:
    for item in acting():
        item.reached.add(TRACED)
    found = (wrap.bodies.find(site, layer, module, place) for wrap in INSTALLED)
    return run_act(next((body for body in found if body is not None), None), given)
