"""Forward passes for the search of OPERA: the prompt, one token, candidates side by side, or an answer again."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from lvlm_attn.decoding.roomy_cache import RoomyLayer
from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families import family_of
from lvlm_attn.hooks.opera.scores import Tape
from lvlm_attn.runtime.transformers_private import attention_of, kwargs_after, prefill


class Reader:
    """Runs the model on tokens, and keeps its cache in step with the beams.

    Args:
        model: the model that generates.
        tape: where the attention rows of each forward are found.
        prompt: length of the prompt.
        is_image: `(rows, prompt)`, True at image tokens.
        kwargs: what `generate` hands on to the model.
    """

    def __init__(self, model: Any, tape: Tape, prompt: int, is_image: Tensor, kwargs: dict[str, Any]):
        self.model, self.tape, self.prompt, self.is_image, self.kwargs = model, tape, prompt, is_image, kwargs
        self._ahead = 0

    def read_prompt(self, ids: Tensor, config: Any) -> Tensor:
        """`(rows, vocabulary)` logits after the prompt."""
        output = prefill(self.model, ids, config, self.kwargs)
        logits = self._updated(output)
        name = attention_of(self.model.config.get_text_config(decoder=True))
        if "flash" in name or "flex" in name:
            raise UnsupportedError(
                f"OPERA processes candidates side by side under a dense mask, which {name.split('|')[-1]} has none of; "
                f"load the model with attn_implementation='sdpa'."
            )
        layers = getattr(self._cache, "layers", None)
        if layers is None or not all(type(layer) in (DynamicLayer, RoomyLayer) for layer in layers):
            raise UnsupportedError(
                "OPERA needs a cache that grows and can be cropped: no cache_implementation, and no use_cache=False; "
                "and if it fails all the same, layers of this model keep a window or a state alone: use another method."
            )
        return logits

    @property
    def _cache(self) -> Any:
        return self.kwargs.get("past_key_values")

    def read_last(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Processes the last token of `(rows, length)`; gives logits, and the weights of its row on the answer."""
        inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=1, **self.kwargs)
        logits = self._updated(self.model(**inputs, return_dict=True))
        return logits, cast(Tensor, self.tape.rows)[:, 0, self.prompt :]

    def look_ahead(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Processes `(rows, candidates)` tokens side by side after the sequence.

        Returns:
            Logits `(rows, candidates, vocabulary)`; weights on the answer, the candidate itself last,
            `(rows, candidates, n + 1)`; weight on the image `(rows, candidates)`.
        """
        rows, count = words.shape
        self._ahead = count
        length = self._cache.get_seq_length()
        valid = self.kwargs.get("attention_mask")
        is_read = torch.ones(rows, length, dtype=torch.bool, device=words.device)
        if valid is not None:
            is_read &= valid[:, :length].bool()
        own = torch.eye(count, dtype=torch.bool, device=words.device).expand(rows, -1, -1)
        may_attend = torch.cat((is_read[:, None].expand(-1, count, -1), own), 2)[:, None]
        dtype = self.model.dtype
        mask = torch.zeros(may_attend.shape, dtype=dtype, device=words.device)
        mask = mask.masked_fill(~may_attend, torch.finfo(dtype).min)
        positions = self.kwargs.get("position_ids")
        next_one = is_read.sum(1)[:, None] if positions is None else positions[..., -1:]
        next_one = next_one + family_of(self.model).first_position
        output = self.model(
            input_ids=words,
            attention_mask=mask,
            position_ids=next_one.expand(*next_one.shape[:-1], count).contiguous(),
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
        )
        weights = cast(Tensor, self.tape.rows)
        on_itself = weights[:, :, length:].diagonal(dim1=1, dim2=2)[..., None]
        on_answer = torch.cat((weights[:, :, self.prompt : length], on_itself), 2)
        on_image = (weights[:, :, : self.prompt] * self.is_image[:, None]).sum(-1)
        return output.logits.float(), on_answer, on_image

    def keep(self, parents: Tensor, candidate: Tensor) -> None:
        """Turns rows into their successors after looking ahead.

        Args:
            parents: `(rows,)`, the row each successor comes from.
            candidate: `(rows,)`, which of the candidates of that row it took.
        """
        length = self._cache.get_seq_length() - self._ahead
        self._cache.reorder_cache(parents)
        for layer in self._cache.layers:
            rows = torch.arange(len(parents), device=layer.keys.device)
            place = (length + candidate).to(layer.keys.device)
            for held in (layer.keys, layer.values):
                held[:, :, length] = held[rows, :, place]
        if self._ahead > 1:
            self._cache.crop(1 - self._ahead)
        self.kwargs = kwargs_after(self.model, {}, self.kwargs)

    def drop(self) -> None:
        """Leaves what was looked ahead at."""
        self._cache.crop(-self._ahead)

    def reorder(self, parents: Tensor) -> None:
        """Puts the cache in the order of the beams."""
        self._cache.reorder_cache(parents)

    def go_back(self, ids: Tensor) -> Tensor:
        """Processes `(rows, length)` again from the end of the prompt, whatever the cache holds of the answer."""
        for key in ("attention_mask", "mm_token_type_ids", "position_ids", "token_type_ids"):
            if self.kwargs.get(key) is not None:
                self.kwargs[key] = self.kwargs[key][..., : ids.shape[1]]
        self._cache.crop(self.prompt - self._cache.get_seq_length())
        count = ids.shape[1] - self.prompt
        inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=count, **self.kwargs)
        return self._updated(self.model(**inputs, return_dict=True))

    def _updated(self, output: Any) -> Tensor:
        self.kwargs = kwargs_after(self.model, output, self.kwargs)
        return cast(Tensor, output.logits[:, -1].float())
