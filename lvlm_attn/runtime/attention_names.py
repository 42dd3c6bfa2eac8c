"""Names under which a configuration asks for attention of ours.

A name ends in what the configuration asked for before, so it says by itself which backend does the work and what to
put back: nothing has to be remembered, by whichever wrap, in whatever order wraps are left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lvlm_attn.runtime.transformers_private import (
    attention_of,
    has_mask,
    is_registered,
    register,
    set_attention_of,
)

_KNOWN = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4", "flex_attention")


@dataclass(frozen=True)
class AttentionNames:
    """The names of one attention function of ours.

    Args:
        prefix: what they begin with; alone it stands for `sdpa`.
        attend: the function, called with `backend=`.
        whose: how errors name the attention.
    """

    prefix: str
    attend: Callable[..., Any]
    whose: str

    def over(self, implementation: str) -> str:
        """The name for a configuration that asks for `implementation`; registers it if it is new.

        Raises:
            UnsupportedError: if transformers has no mask function for it.
        """
        name = f"{self.prefix}|{implementation}"
        if not is_registered(name):
            backend = self.backend(implementation) or implementation
            register(name, partial(self.attend, backend=backend), backend, self.whose)
        return name

    def over_known(self) -> None:
        """Registers the names for the backends of transformers that there are, once and for all."""
        for backend in _KNOWN:
            if has_mask(backend):
                self.over(backend)

    def alone(self) -> Callable[..., Any]:
        """The function behind the prefix alone."""
        return partial(self.attend, backend="sdpa")

    def before(self, implementation: str) -> str | None:
        """What a configuration asked for before it had this name; None if the name is not ours."""
        start = f"{self.prefix}|"
        return implementation.removeprefix(start) if implementation.startswith(start) else None

    def backend(self, implementation: str) -> str | None:
        """The backend behind one of our names, or None if the name is not ours."""
        found = self.before(implementation)
        return "sdpa" if self.prefix in (implementation, found) else found

    def take(self, configs: Sequence[Any]) -> None:
        """Points configurations at our function, over whatever they ask for now; safe to call again.

        Raises:
            UnsupportedError: if transformers has no mask function for a backend.
        """
        for config in configs:
            current = attention_of(config)
            if self.before(current) is None:
                set_attention_of(config, self.over(current))

    def give_back(self, configs: Sequence[Any]) -> None:
        """Lets configurations ask for what they asked for before; one that was set anew meanwhile stays so."""
        for config in configs:
            before = self.before(attention_of(config))
            if before is not None:
                set_attention_of(config, before)
