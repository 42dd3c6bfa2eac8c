"""The model and the inputs that maps were recorded with, for questions that only they can answer."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target
    from lvlm_attn.interventions.base import Intervention


@dataclass(frozen=True, eq=False)
class Live:
    """What maps in memory know beside their numbers; it is never saved.

    Attributes:
        model: the model, which maps do not keep alive.
        processor: its processor, or None.
        inputs: what the model was given for the prompts.
        interventions: what acted, the recorder not among it.
        row: the row of the inputs that the maps are of, or None for all of them.
    """

    model: weakref.ref[Any]
    processor: Any
    inputs: dict[str, Tensor]
    interventions: tuple[Intervention, ...] = ()
    row: int | None = None

    @staticmethod
    def of(target: Target, inputs: dict[str, Tensor], interventions: tuple[Intervention, ...]) -> Live:
        """What is known of prompts that were just processed."""
        return Live(weakref.ref(target.model), target.processor, inputs, interventions)

    def narrowed(self, sample: int, batch: int) -> Live:
        """The same for one of `batch` samples; several of them may be answers to one prompt."""
        rows = len(self.inputs["input_ids"]) if self.row is None else 1
        return replace(self, row=sample * rows // batch if self.row is None else self.row)

    def need_model(self, doing: str) -> Any:
        """The model.

        Raises:
            LvlmAttnError: if it is gone.
        """
        model = self.model()
        if model is None:
            raise LvlmAttnError(
                f"{doing} needs the model that made the maps, which is gone; record them again."
            )
        return model
