"""A `generate` of the wrapped model that has returned, as interventions are told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.context import State


@dataclass(frozen=True, eq=False)
class Ended:
    """What was generated, and from what.

    Attributes:
        target: the model.
        output: what `generate` returned: token ids, or transformers' output object.
        options: the keyword arguments of `generate`.
        request: what `lvlm.generate` asked, as interventions rewrote it; None for a plain `model.generate`.
        undisturbed: a block in which the model may decode something else with all interventions acting; of what they
            hold only the given state changes.
    """

    target: Target
    output: Any
    options: Mapping[str, Any]
    request: Any
    undisturbed: Callable[[State], AbstractContextManager[None]]

    @property
    def sequences(self) -> Tensor:
        """`(rows, length)`: the token ids, prompts included."""
        return cast("Tensor", getattr(self.output, "sequences", self.output))
