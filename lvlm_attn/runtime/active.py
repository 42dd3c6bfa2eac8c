"""The calls of the language model that are running now, and which wraps act in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor, nn

from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Call, State


class Editor(NamedTuple):
    """An intervention of a wrap, and what it holds there."""

    item: Intervention
    state: State


Editors = Mapping[nn.Module, Sequence[Editor]]
"""For every attention module of a model, the interventions with a site in it; empty where there is none."""


@dataclass(frozen=True, eq=False)
class Acting:
    """A call in which a wrap acts.

    Attributes:
        call: the call.
        editors: the wrap's own mapping, which also tells wraps apart.
    """

    call: Call
    editors: Editors


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
    return active[-1] if active and isinstance(active[-1], TextPass) else None


def own_call(editors: Editors) -> Call | None:
    """The running call of the wrap with these editors."""
    return next((item.call for item in acting() if item.editors is editors), None)


def others(editors: Editors) -> tuple[Acting | Silent | TextPass, ...]:
    """What is running, without the wrap with these editors."""
    return tuple(item for item in ACTIVE.get() if getattr(item, "editors", None) is not editors)


@contextmanager
def without_interventions(
    capture: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> Iterator[TextPass]:
    """A pass of our own: no intervention acts while the block runs."""
    running = TextPass(capture=capture)
    token = ACTIVE.set((*ACTIVE.get(), running))
    try:
        yield running
    finally:
        ACTIVE.reset(token)
