"""A model that reads views beside a prompt, and shows the decoding loop the prompt alone.

transformers' own loop (`GenerationMixin._sample`) runs on it unchanged: processors, warpers, criteria, streamers,
draws and outputs are those of a plain `generate` of the rows asked for. What the loop takes for the model's
forward reads all rows and joins their logits; the token it chooses is written to all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.decoding.skip_padding import skipped_padding

Fuse = Callable[[Tensor, Sequence[Tensor], int], Tensor]
"""Joins main logits `(batch, vocabulary)` with those of the views, at a step."""


class Folded:
    """What `GenerationMixin._sample` sees of a model whose batch is `[rows; views of the rows; ...]`.

    Args:
        model: the model.
        input_ids: `(parts * rows, length)`, all rows of the joined batch.
        model_kwargs: what `generate` prepared for them.
        prompt: `(rows, main length)`, the prompts the loop knows.
        fuse: joins the logits.
        layers: the decoder layers.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        prompt: Tensor,
        fuse: Fuse,
        layers: Sequence[nn.Module],
    ) -> None:
        self._model, self._fuse, self._layers = model, fuse, layers
        self._ids, self._kwargs = input_ids, model_kwargs
        self._rows, self._seen = prompt.shape
        self._step = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **inputs: Any) -> Any:
        """Reads all rows and returns the joined logits as those of the rows asked for."""
        return self._folded(self._model(**inputs))

    def _prefill(self, input_ids: Tensor, config: Any, model_kwargs: dict[str, Any], **options: Any) -> Any:
        with skipped_padding(self._layers, self._kwargs["attention_mask"]):
            outputs = self._model._prefill(self._ids, config, self._kwargs, **options)
        return self._folded(outputs)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **options: Any) -> Any:
        """Writes the tokens chosen since the last call to all views, and prepares the next one."""
        new = input_ids[:, self._seen :]
        self._seen = input_ids.shape[1]
        parts = self._ids.shape[0] // self._rows
        self._ids = torch.cat((self._ids, new.repeat(parts, 1).to(self._ids.device)), dim=1)
        length = options.get("next_sequence_length")
        return self._model.prepare_inputs_for_generation(
            self._ids, next_sequence_length=length, **self._kwargs
        )

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **options: Any
    ) -> dict[str, Any]:
        self._kwargs = self._model._update_model_kwargs_for_generation(outputs, self._kwargs, **options)
        return model_kwargs

    def _valid_auto_compile_criteria(self, model_kwargs: dict[str, Any], config: Any) -> bool:
        # A compiled call would be the model's own and pass by the joining of logits.
        return False

    def _folded(self, outputs: Any) -> Any:
        main, *views = outputs.logits[:, -1].to(dtype=torch.float32, copy=True).split(self._rows)
        outputs.logits = self._fuse(main, views, self._step)[:, None]
        self._step += 1
        return outputs


def decode_folded(folded: Folded, prompt: Tensor, **loop: Any) -> Any:
    """Runs transformers' loop for greedy decoding and sampling.

    Args:
        folded: the model.
        prompt: `(rows, main length)`.
        **loop: what `generate` prepared for these rows: processors, criteria, configuration, streamer, `use_cache`.
    """
    return cast("Any", type(folded._model))._sample(folded, prompt, **loop)
