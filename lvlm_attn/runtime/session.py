"""What one active wrap holds: its hooks on the model, and the prompt that is being read."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NoReturn, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import Evidence, image_token_id, named_arguments, prompt_layout
from lvlm_attn.interventions.base import Intervention, Target
from lvlm_attn.interventions.call import (
    ACTIVE,
    Call,
    Silence,
    TextPass,
    active_calls,
    extended,
    extended_validity,
    in_text_pass,
)
from lvlm_attn.kernels.dispatch import Dispatch
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.runtime.arguments import entering_hidden, has_dense_mask, padding_mask
from lvlm_attn.runtime.generate_frame import Generation, running_generation
from lvlm_attn.runtime.sites import Sites
from lvlm_attn.runtime.text_pass import text_heads
from lvlm_attn.runtime.vision_reader import VisionReader


class Session:
    """Hooks of one wrap and the state of its current prompt.

    State belongs to one prompt: it begins with an empty cache and ends with the next one.
    """

    def __init__(
        self,
        target: Target,
        interventions: Sequence[Intervention],
        *,
        edit_limit: int,
        no_image: str,
        kernels: str = "auto",
    ):
        self.target = target
        self.interventions = tuple(interventions)
        self.edit_limit = edit_limit
        self.no_image = no_image
        self.kernels = Dispatch.of(kernels)
        self.stats: dict[int, dict[Any, Any]] = {}
        self._handles: list[RemovableHandle] = []
        self._given: Mapping[str, Any] | None = None
        self._labels: Tensor | None = None
        self._layout: PromptLayout | None = None
        self._is_valid: Tensor | None = None
        self._memory: dict[int, dict[Any, Any]] = {}
        self._length = 0
        self._cache: weakref.ref[Any] | None = None
        self._thread: int | None = None
        self._last_call: Call | None = None
        self._mode: Literal["plain", "serving", "silent"] = "plain"
        wanted = [rows for item in self.interventions for rows in item.vision(target)]
        if wanted and not target.family.encoder:
            readers = " and ".join(item.title for item in self.interventions if item.vision(target))
            raise UnsupportedError(
                f"{readers} reads what the image encoder looks at, and where the patches of {target.family.title}'s "
                f"encoder stand among its image tokens is not known here; use a method that reads the decoder alone."
            )
        self._vision = VisionReader(target.parts.base, target.parts.vision, wanted) if wanted else None
        self.sites = Sites.of(self.interventions, target)

    @property
    def needs_attention(self) -> bool:
        """Whether the attention registry has to call us."""
        return bool(self.sites.by_layer["attention"])

    def install(self) -> None:
        """Puts the hooks on the model."""
        parts = self.target.parts
        if not self.interventions:
            return
        keep = self._handles.append
        keep(self.target.model.register_forward_pre_hook(self._on_model, with_kwargs=True))
        keep(parts.base.register_forward_pre_hook(self._on_base, with_kwargs=True))
        keep(parts.language_model.register_forward_pre_hook(self._on_enter, with_kwargs=True))
        keep(parts.language_model.register_forward_hook(self._on_leave, with_kwargs=True, always_call=True))
        for layer, items in self.sites.by_layer["observe"].items():
            keep(
                parts.layers[layer].register_forward_pre_hook(self._observer(layer, items), with_kwargs=True)
            )
        for layer, items in self.sites.by_layer["scale_heads"].items():
            projection = cast("nn.Module", parts.output_projections[layer])
            keep(projection.register_forward_pre_hook(self._scaler(layer, items)))
        for layer, items in self.sites.by_layer["modules"].items():
            keeper, adder = self._adder(layer, items)
            keep(parts.layers[layer].register_forward_pre_hook(keeper, with_kwargs=True))
            keep(cast("nn.Module", parts.attentions[layer]).register_forward_hook(adder))
        for layer, items in self.sites.by_layer["frozen"].items():
            freezer = self._freezer(layer, items)
            keep(parts.layers[layer].register_forward_hook(freezer, with_kwargs=True))
        if self._vision is not None:
            self._handles += self._vision.install()
        if any(item.overrides("edit_logits") for item in self.interventions):
            keep(self.target.model.register_forward_hook(self._on_logits))

    def remove(self) -> None:
        """Takes the hooks off and forgets the prompt; safe to call twice."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        ACTIVE.set(self._other_calls())
        self._forget()

    @contextmanager
    def during(self, mode: Literal["serving", "silent"]) -> Iterator[None]:
        """For `lvlm.generate`: `"serving"` lets requests through, `"silent"` stops all sites for a while.

        Methods look at the image and ask the bare model in silence; wraps that they make themselves do act.
        """
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise LvlmAttnError("A wrapped model cannot be copied; leave the `with` block first.")

    def __reduce__(self) -> NoReturn:
        raise LvlmAttnError("A wrapped model cannot be pickled; leave the `with` block first.")

    # The hooks, in the order in which a forward reaches them.

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._labels = named_arguments(module, args, kwargs).get("labels")

    def _on_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._mode == "silent":
            return
        if self._mode == "plain" and in_text_pass() is None:
            self._refuse_without_request()
        self._given = named_arguments(module, args, kwargs)

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if in_text_pass() is not None:
            return None
        if self._mode == "silent":
            ACTIVE.set((*self._other_calls(), Silence(self)))
            return None
        self._claim_thread()
        try:
            call = self._begin_call(kwargs)
        except BaseException:
            self._thread = None
            raise
        # A call of ours that an interrupt left behind is dropped here.
        ACTIVE.set((*self._other_calls(), call))
        if call.start == 0:
            for place, item in enumerate(self.interventions):
                item.begin(call, place)
        changed = bool(call.inputs.get("logits_to_keep"))
        if changed:  # some decoders (gemma4) drop queries on the way, and every layer is told of all of them
            call.inputs["logits_to_keep"] = 0
        for item in self.interventions:
            if item.overrides("edit_embeds"):
                embeds = item.edit_embeds(call, call.inputs["inputs_embeds"])
                if embeds is not None:
                    call.inputs["inputs_embeds"], changed = embeds, True
        return (args, call.inputs) if changed else None

    def _on_leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if in_text_pass() is not None:
            return
        if self._mode == "silent":
            ACTIVE.set(self._other_calls())
            return
        self._last_call = next((call for call in active_calls() if call.owner is self), None)
        if self._last_call is not None:
            self._last_call.memo.clear()
        ACTIVE.set(self._other_calls())
        self._thread = None
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            cache = kwargs.get("past_key_values")
        self._cache = None if cache is None else weakref.ref(cache)

    def _observer(self, layer: int, items: list[tuple[int, Intervention]]) -> Any:
        def observe(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = self._own_call()
            if call is not None:
                hidden = entering_hidden(args, kwargs)
                for place, item in items:
                    item.observe(call.layer(layer, place), hidden)

        return observe

    def _scaler(self, layer: int, items: list[tuple[int, Intervention]]) -> Any:
        def scale(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            call = self._own_call()
            if call is None:
                return None
            joined = args[0]
            heads = joined.view(*joined.shape[:-1], self.target.heads, -1)
            for place, item in items:
                scaled = item.scale_heads(call.layer(layer, place), heads)
                heads = heads if scaled is None else scaled
            return (heads.reshape(joined.shape), *args[1:])

        return scale

    def _adder(self, layer: int, items: list[tuple[int, Intervention]]) -> tuple[Any, Any]:
        entered: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[:] = [entering_hidden(args, kwargs)]

        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            call, before = self._own_call(), entered.pop()
            if call is None:
                return None
            first = output[0] if isinstance(output, tuple) else output
            attended = first
            for place, item in items:
                function = item.modules(call.layer(layer, place))
                added = None if function is None else function(before + attended)
                attended = attended if added is None else attended + added.to(attended.dtype)
            if attended is first:
                return None
            return (attended, *output[1:]) if isinstance(output, tuple) else attended

        return keep, add

    def _freezer(self, layer: int, items: list[tuple[int, Intervention]]) -> Any:
        def freeze(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            call = self._own_call()
            if call is None:
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            for place, item in items:
                is_frozen = item.frozen(call.layer(layer, place))
                if is_frozen is not None:
                    is_frozen = is_frozen.to(hidden.device)[..., None]
                    hidden = torch.where(is_frozen, entering_hidden(args, kwargs), hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return freeze

    def _on_logits(self, module: nn.Module, args: Any, output: Any) -> Any:
        call, self._last_call = self._last_call, None
        if call is None or getattr(output, "logits", None) is None:
            return None
        for item in self.interventions:
            if item.overrides("edit_logits"):
                edited = item.edit_logits(call, output.logits)
                output.logits = output.logits if edited is None else edited
        return output

    def _other_calls(self) -> tuple[Call | TextPass | Silence, ...]:
        return tuple(call for call in ACTIVE.get() if getattr(call, "owner", None) is not self)

    def _own_call(self) -> Call | None:
        return next((call for call in active_calls() if call.owner is self), None)

    # Reading the prompt.

    def _begin_call(self, kwargs: dict[str, Any]) -> Call:
        given, self._given = self._given, None
        labels, self._labels = self._labels, None
        if given is None:
            raise LvlmAttnError(
                "The language model was called by itself inside a wrap; call the model that was wrapped, which "
                "knows where the images are."
            )
        ids = given.get("input_ids")
        if ids is None:
            raise LvlmAttnError(
                "The wrapped model got inputs_embeds without input_ids, so its image tokens cannot be found; "
                "pass input_ids."
            )
        queries = kwargs["inputs_embeds"].shape[1]
        cache = kwargs.get("past_key_values")
        start = 0 if cache is None else int(cache.get_seq_length())
        is_prompt = True
        if start == 0:
            self._begin_prompt(given, kwargs, ids, queries)
        else:
            is_prompt = self._continue_prompt(given, kwargs, ids, start, queries, cache)
        self._length = start + queries
        assert self._layout is not None
        is_valid = self._is_valid
        if is_valid is not None:
            is_valid = nn.functional.pad(is_valid, (0, self._length - is_valid.shape[1]), value=True)
        return Call(
            owner=self,
            editors=self.sites.by_layer["attention"],
            prompt=self._layout,
            start=start,
            queries=queries,
            is_prompt=is_prompt,
            is_valid=is_valid,
            memory=self._memory,
            stats=self.stats,
            edit_limit=self.edit_limit,
            kernels=self.kernels,
            text_mask=self.target.family.mask_of(cast("Any", self.target.parts.base).config, given),
            has_own_mask=has_dense_mask(given) and running_generation(self.target.parts.base) is None,
            inputs=dict(kwargs),
            ids=ids[:, -queries:],
            labels=labels if labels is not None and labels.shape == ids.shape else None,
            text_heads=lambda layers: text_heads(self.target, self._layout, kwargs, layers),
            vision=self._vision.find(given) if self._vision is not None and is_prompt else None,
        )

    def _begin_prompt(
        self, given: Mapping[str, Any], kwargs: dict[str, Any], ids: Tensor, queries: int
    ) -> None:
        self._forget()
        generation = running_generation(self.target.parts.base)
        if generation is not None and generation.is_chunked:
            self._refuse("chunked_prefill")
            self._refuse_cut_marks(ids)
        if generation is not None and generation.beams > 1:
            self._refuse("beams")
        length = queries if generation is None else min(queries, generation.prompt_length)
        evidence = self._evidence(given, kwargs, ids[:, :length])
        layout = prompt_layout(self.target.family, evidence, padding_mask(given, kwargs, length))
        self._check_images(layout, generation)
        self._set_layout(extended(layout, queries))

    def _continue_prompt(
        self,
        given: Mapping[str, Any],
        kwargs: dict[str, Any],
        ids: Tensor,
        start: int,
        queries: int,
        cache: object,
    ) -> bool:
        """Adds the positions of a call with a filled cache; returns whether they are prompt."""
        if self._layout is None or self._cache is None or self._cache() is not cache or start > self._length:
            raise UnsupportedError(
                f"The cache holds {start} tokens that were not read inside this wrap, so what they are is not "
                f"known; begin with an empty cache inside the wrap."
            )
        if ids.shape[0] != self._layout.batch:
            raise UnsupportedError(
                f"The batch grew from {self._layout.batch} to {ids.shape[0]} rows after the prompt was read; "
                f"repeat the rows before the prompt."
            )
        if queries == 1 and start > self._layout.length:
            return False
        generation = running_generation(self.target.parts.base)
        if generation is None and queries == 1:
            return False
        if generation is not None and start >= generation.prompt_length:
            if start < self._layout.length:
                self._set_layout(self._layout.crop(start))
            return False
        if generation is not None and generation.is_chunked:
            self._refuse_cut_marks(ids)
        before = extended(self._layout, start)
        evidence = self._evidence(given, kwargs, ids, before)
        layout = prompt_layout(self.target.family, evidence, padding_mask(given, kwargs, queries, start))
        if generation is not None and generation.is_chunked:
            self._check_images(layout, generation)
        self._set_layout(layout)
        return True

    def _evidence(
        self, given: Mapping[str, Any], kwargs: dict[str, Any], ids: Tensor, after: PromptLayout | None = None
    ) -> Evidence:
        return Evidence(
            config=cast("Any", self.target.parts.base).config,
            input_ids=ids,
            call=given,
            position_ids=kwargs.get("position_ids"),
            newline=self.target.parts.newline,
            inputs_embeds=kwargs["inputs_embeds"],
            after=after,
        )

    def _set_layout(self, layout: PromptLayout) -> None:
        self._layout = layout
        self._is_valid = extended_validity(layout, layout.length)

    def _check_images(self, layout: PromptLayout, generation: Generation | None) -> None:
        is_chunked = generation is not None and generation.is_chunked
        needy = [item.title for item in self.interventions if item.needs_image]
        if needy and self.no_image == "error" and not is_chunked and not bool(layout.has_image.any()):
            raise LvlmAttnError(
                f"There is no image in the prompt, and {' and '.join(needy)} can only act on one; pass an image, "
                f"or wrap(..., no_image='pass') to run such prompts unchanged."
            )
        if is_chunked and needy and any(len(grids) > 1 for grids in layout.grids):
            raise UnsupportedError(
                f"{needy[0]} cannot read a prompt of several images in chunks, because text between the images "
                f"would be treated before all images are known; pass prefill_chunk_size=None."
            )

    def _refuse(self, situation: str) -> None:
        for item in self.interventions:
            if reason := item.refuse(situation):
                raise UnsupportedError(reason)

    def _refuse_cut_marks(self, ids: Tensor) -> None:
        family = self.target.family
        token = image_token_id(cast("Any", self.target.parts.base).config)
        if family.marks_between and bool((ids == token).any()):
            raise UnsupportedError(
                f"The chunked prefill may cut an image between its markers, which tells {family.title} images apart; "
                f"pass prefill_chunk_size=None."
            )

    def _refuse_without_request(self) -> None:
        needy = [item.title for item in self.interventions if item.needs_request()]
        if needy:
            raise UnsupportedError(
                f"{' and '.join(needy)} cannot act in a plain call of the model; call lvlm.generate(**inputs, ...) "
                f"or lvlm.generate(images=[...], prompts=[...]), where lvlm is what `with wrap(...) as lvlm` gives."
            )

    def _claim_thread(self) -> None:
        current = threading.get_ident()
        if self._thread not in (None, current):
            raise UnsupportedError(
                "Two threads use one wrapped model at the same time; give each thread its own model, or take "
                "turns."
            )
        self._thread = current

    def _forget(self) -> None:
        self._layout, self._is_valid, self._cache, self._length = None, None, None, 0
        self._last_call = None
        self._memory = {}
