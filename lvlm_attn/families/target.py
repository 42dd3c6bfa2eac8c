"""The model that interventions are fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from lvlm_attn.families.family import Family, Parts


@dataclass(frozen=True)
class Target:
    """The model an intervention is fitted to.

    Attributes:
        model: the model that is wrapped.
        family: its entry in the family table.
        parts: its layers and projections.
        processor: the processor given to `wrap`, or None.
    """

    model: nn.Module
    family: Family
    parts: Parts
    processor: Any | None

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self.parts.text_config

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.parts.layers)

    @property
    def skipped_layers(self) -> tuple[int, ...]:
        """Layers without softmax attention, where sites of attention and heads do not act."""
        known = self.parts.softmax_layers
        return tuple(layer for layer in range(self.layers) if layer not in known)

    @property
    def heads(self) -> int:
        """Number of query heads."""
        return cast(int, self.config.num_attention_heads)

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return cast(int, self.config.hidden_size)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return getattr(self.config, "head_dim", None) or self.hidden_size // self.heads
