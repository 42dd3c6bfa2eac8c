"""The model and the inputs that maps were recorded with, for questions that only they can answer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target


@dataclass(frozen=True, eq=False)
class Live:
    """What maps in memory know beside their numbers; it is never saved.

    Attributes:
        model: the model, which maps do not keep alive.
        processor: its processor, or None.
        inputs: what the model was given for the prompt.
        sample: the row of the inputs that the maps are of, or None for all of them.
    """

    model: weakref.ref[Any]
    processor: Any
    inputs: dict[str, Tensor]

    @staticmethod
    def of(target: Target, inputs: dict[str, Tensor]) -> Live:
        """What is known of a prompt that was just read."""
        return Live(weakref.ref(target.model), target.processor, inputs)

    def need_model(self, doing: str) -> Any:
        """The model.

        Raises:
            LvlmAttnError: if it is gone.
        """
        model = self.model()
        if model is None:
            raise LvlmAttnError(f"{doing} needs the model that made the maps, which is gone; pass model=.")
        return model
