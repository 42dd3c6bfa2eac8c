"""The rows asked for and their views as one batch with one cache, whose logits are joined at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_attn.decoding.skip_padding import skipped_padding
from lvlm_attn.runtime.transformers_private import kwargs_after

Fuse = Callable[[Tensor, Sequence[Tensor], int], Tensor]
"""Joins main logits `(batch, vocabulary)` with those of the views, at a step."""


class JoinedRows:
    """Next-token logits of the rows asked for, from a batch `[rows; views of the rows; ...]`.

    Args:
        model: the model.
        input_ids: `(parts * rows, length)`, the prompts of the whole batch.
        kwargs: what `generate` prepared for them.
        rows: how many rows were asked for.
        fuse: joins the logits.
        layers: the decoder layers.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        kwargs: dict[str, Any],
        rows: int,
        fuse: Fuse,
        layers: Sequence[nn.Module],
    ) -> None:
        self.model = model
        self._ids, self._kwargs = input_ids, kwargs
        self._rows, self._fuse, self._layers = rows, fuse, layers
        self._step = 0

    def prefill(self) -> Tensor:
        """Joined logits `(rows, vocabulary)` after the prompts."""
        inputs = self.model.prepare_inputs_for_generation(self._ids, is_first_iteration=True, **self._kwargs)
        with skipped_padding(self._layers, self._kwargs["attention_mask"]):
            return self._joined(inputs)

    def step(self, tokens: Tensor) -> Tensor:
        """Joined logits after one more token `(rows,)`, which all views of a row get."""
        new = tokens.to(self._ids.device).repeat(self._ids.shape[0] // self._rows)
        self._ids = torch.cat((self._ids, new[:, None]), dim=1)
        inputs = self.model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=1 if self._kwargs["use_cache"] else None, **self._kwargs
        )
        return self._joined(inputs)

    def _joined(self, inputs: dict[str, Any]) -> Tensor:
        output = self.model(**inputs, return_dict=True)
        self._kwargs = kwargs_after(self.model, output, self._kwargs)
        main, *views = output.logits[:, -1].float().split(self._rows)
        joined = self._fuse(main, views, self._step)
        self._step += 1
        return joined
