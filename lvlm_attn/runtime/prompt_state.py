"""The prompt that a wrap is in: where it began, how it goes on, and when the next one begins."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import ImageInputs, image_token_id, prompt_layout
from lvlm_attn.families.fixed_grids import refuse_other_grids
from lvlm_attn.families.target import Target
from lvlm_attn.families.videos import has_video_tokens
from lvlm_attn.interventions.base import Intervention, Situation
from lvlm_attn.interventions.context import extended
from lvlm_attn.kernels.host import reading_is_free
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.runtime.arguments import padding_mask
from lvlm_attn.runtime.generate_frame import GenerateCall, running_generate


class PromptState:
    """One prompt: it begins with an empty cache and ends with the next one.

    Args:
        target: the model.
        interventions: those of the wrap, some of which may refuse a situation or a prompt without images.
        no_image: `"error"` or `"pass"`, see `wrap`.

    Attributes:
        layout: the prompt so far, or None before any.
        length: how many positions were processed.
        plans: see `Call.plans`.
    """

    def __init__(self, target: Target, interventions: Sequence[Intervention], no_image: str):
        self._target = target
        self._interventions = interventions
        self._no_image = no_image
        self.layout: PromptLayout | None = None
        self.length = 0
        self.plans: dict[int, Any] = {}
        self._is_valid: Tensor | None = None
        self._cache: weakref.ref[Any] | None = None

    def fresh(self) -> PromptState:
        """The same before any prompt."""
        return PromptState(self._target, self._interventions, self._no_image)

    def forget(self) -> None:
        """Ends the prompt."""
        self.layout, self._is_valid, self._cache, self.length = None, None, None, 0
        self.plans = {}

    def keep_cache(self, cache: Any) -> None:
        """Remembers the cache that holds what was processed, so that no other one is taken for it."""
        self._cache = None if cache is None else weakref.ref(cache)

    def is_valid(self) -> Tensor | None:
        """`(batch, length)`, False at padding, or None if nothing is padded."""
        known = self._is_valid
        return None if known is None else pad(known, (0, self.length - known.shape[1]), value=True)

    def advance(self, given: Mapping[str, Any], kwargs: dict[str, Any], ids: Tensor) -> bool:
        """Adds the positions of a call; returns whether they are prompt.

        Args:
            given: arguments of the base model.
            kwargs: arguments of the language model.
            ids: token ids, as many as the base model was given.

        Raises:
            LvlmAttnError: if there is no image and an intervention needs one.
            UnsupportedError: if what the cache holds is not known, or an intervention refuses the situation.
        """
        queries = kwargs["inputs_embeds"].shape[1]
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        is_prompt = True
        if start == 0:
            self._begin(given, kwargs, ids, queries)
        else:
            is_prompt = self._go_on(given, kwargs, ids, start, queries, cache)
        self.length = start + queries
        return is_prompt

    def goes_on(self, given: Mapping[str, Any], ids: Tensor, start: int, cache: object) -> bool:
        """Adds the position of a call that is one generated token for sure; returns whether it is.

        Args:
            given: arguments of the model.
            ids: the token ids of the call.
            start: how many tokens the cache holds.
            cache: the cache.
        """
        layout = self.layout
        if (
            layout is None
            or self._cache is None
            or self._cache() is not cache
            or ids.shape != (layout.batch, 1)
        ):
            return False
        if not layout.length <= start <= self.length:
            return False
        generation = running_generate(self._target.parts.base)
        if generation is not None and start == layout.length < generation.prompt_length:
            return False
        if generation is None:
            self._note_mask(given, start + 1)
        self.length = start + 1
        return True

    def _begin(self, given: Mapping[str, Any], kwargs: dict[str, Any], ids: Tensor, queries: int) -> None:
        self.forget()
        generation = running_generate(self._target.parts.base)
        if generation is not None and generation.is_chunked:
            self._refuse(Situation.CHUNKED_PREFILL)
            self._refuse_cut_marks(ids)
        if generation is not None and generation.beams > 1:
            self._refuse(Situation.BEAMS)
        length = queries if generation is None else min(queries, generation.prompt_length)
        mask = padding_mask(given, kwargs, length)
        layout = self._lay_out(given, kwargs, ids[:, :length], mask, generation)
        self._check_images(layout, generation)
        self._set_layout(extended(layout, queries), ids.device)

    def _go_on(
        self,
        given: Mapping[str, Any],
        kwargs: dict[str, Any],
        ids: Tensor,
        start: int,
        queries: int,
        cache: object,
    ) -> bool:
        """Adds the positions of a call with a filled cache; returns whether they are prompt."""
        if self.layout is None or self._cache is None or self._cache() is not cache or start > self.length:
            raise UnsupportedError(
                f"The cache holds {start} tokens that were not processed inside this wrap, so what they are is not "
                f"known; begin with an empty cache inside the wrap."
            )
        if ids.shape[0] != self.layout.batch:
            raise UnsupportedError(
                f"The batch grew from {self.layout.batch} to {ids.shape[0]} rows after the prompt was processed; "
                f"repeat the rows before the prompt."
            )
        generation = running_generate(self._target.parts.base)
        if queries == 1 and (
            start > self.layout.length or (generation is None and start == self.layout.length)
        ):
            if generation is None:
                self._note_mask(given, start + 1)
            return False
        if generation is not None and start >= generation.prompt_length:
            if start < self.layout.length:
                self._set_layout(self.layout.on_host.crop(start), ids.device)
            return False
        if generation is not None and generation.is_chunked:
            self._refuse_cut_marks(ids)
        before = extended(self.layout.on_host, start)
        mask = padding_mask(given, kwargs, queries, start)
        layout = self._lay_out(given, kwargs, ids, mask, generation, before)
        if generation is not None and generation.is_chunked:
            self._check_images(layout, generation)
        self._set_layout(layout, ids.device)
        self._note_mask(given, start + queries)
        return True

    def _note_mask(self, given: Mapping[str, Any], length: int) -> None:
        """Takes from the mask of a later call what it says of all positions, which may be other than before.

        Where reading would have to be waited for, a mask is taken for one that hides something. A dense one of queries
        by keys says what it says to the attention itself.
        """
        mask = given.get("attention_mask")
        if mask is not None and not (
            isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= length
        ):
            return
        is_valid = None if mask is None else mask[:, :length] != 0
        if is_valid is not None and reading_is_free(is_valid.device) and bool(is_valid.all()):
            is_valid = None
        self._is_valid = is_valid

    def _lay_out(
        self,
        given: Mapping[str, Any],
        kwargs: dict[str, Any],
        ids: Tensor,
        mask: Tensor | None,
        generation: GenerateCall | None,
        after: PromptLayout | None = None,
    ) -> PromptLayout:
        """The layout of a piece of the prompt and of what came before, on the host: one wait for the device."""
        ids, mask = _on_host(ids, mask)
        positions = kwargs.get("position_ids")
        if isinstance(positions, Tensor) and positions.dim() == 3:  # those of time, height and width are read
            positions = positions.cpu()
        image_inputs = ImageInputs(
            config=cast("Any", self._target.parts.base).config,
            input_ids=ids,
            call=given,
            position_ids=positions,
            newline=self._target.parts.newline,
            inputs_embeds=kwargs["inputs_embeds"],
            after=after,
        )
        layout = prompt_layout(self._target.family, image_inputs, mask)
        if after is None and not (generation is not None and generation.is_chunked):
            refuse_other_grids(self._target.family, image_inputs, layout)
        return layout

    def _set_layout(self, layout: PromptLayout, device: torch.device) -> None:
        self.layout = layout.to(device)
        self._is_valid = self.layout.is_valid if bool(layout.is_pad.any()) else None

    def _check_images(self, layout: PromptLayout, generation: GenerateCall | None) -> None:
        is_chunked = generation is not None and generation.is_chunked
        needy = [item.title for item in self._interventions if item.needs_image]
        if needy and self._no_image == "error" and not is_chunked and not bool(layout.has_image.any()):
            raise LvlmAttnError(
                f"There is no image in the prompt, and {' and '.join(needy)} can only act on one; pass an image, "
                f"or wrap(..., no_image='pass') to run such prompts unchanged."
            )
        if is_chunked and needy and any(len(grids) > 1 for grids in layout.grids):
            raise UnsupportedError(
                f"{needy[0]} cannot process a prompt of several images in chunks, because text between the images "
                f"would be treated before all images are known; pass prefill_chunk_size=None."
            )

    def _refuse(self, situation: Situation) -> None:
        for item in self._interventions:
            if reason := item.refuse(situation):
                raise UnsupportedError(reason)

    def _refuse_cut_marks(self, ids: Tensor) -> None:
        family, config = self._target.family, cast("Any", self._target.parts.base).config
        token = image_token_id(config)
        if family.videos is not None and has_video_tokens(config, ids):
            raise UnsupportedError(
                "videos: the chunked prefill may cut a video, whose frames cannot be told from a part of it; pass "
                "prefill_chunk_size=None."
            )
        if family.marks_between and bool((ids == token).any()):
            raise UnsupportedError(
                f"The chunked prefill may cut an image between its markers, which tells {family.title} images apart; "
                f"pass prefill_chunk_size=None."
            )


def _on_host(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Token ids and their padding mask in the host's memory, brought there together."""
    if mask is None or mask.shape != ids.shape or mask.device != ids.device:
        return ids.cpu(), None if mask is None else mask.cpu()
    told, valid = torch.stack((ids.long(), (mask != 0).long())).cpu().unbind(0)
    return told, valid
