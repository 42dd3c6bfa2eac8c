"""What one active wrap holds: its hooks on the model, and the prompt that is being processed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn, cast

from torch import Tensor, nn

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import named_arguments
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Call, Layer, State
from lvlm_attn.interventions.ended import Ended
from lvlm_attn.interventions.sites import LAYER_SITES
from lvlm_attn.interventions.summary import add
from lvlm_attn.kernels.dispatch import Dispatch
from lvlm_attn.runtime.active import (
    ACTIVE,
    INSTALLED,
    TRACED,
    Acting,
    Asked,
    Editor,
    Editors,
    Silent,
    others,
    own_call,
    text_pass,
)
from lvlm_attn.runtime.arguments import has_dense_mask
from lvlm_attn.runtime.changes import Changes
from lvlm_attn.runtime.checked import checked_embeds, checked_logits
from lvlm_attn.runtime.generate_frame import running_generate
from lvlm_attn.runtime.generate_watch import GenerateWatch
from lvlm_attn.runtime.hooks import Hooks
from lvlm_attn.runtime.layer_hooks import install_layer_hooks, rests
from lvlm_attn.runtime.modes import PLAIN, Modes
from lvlm_attn.runtime.operators import STALE, Bodies
from lvlm_attn.runtime.probe import probe
from lvlm_attn.runtime.prompt_state import PromptState
from lvlm_attn.runtime.sites import Sites
from lvlm_attn.runtime.text_pass import text_heads
from lvlm_attn.runtime.thread_claim import ThreadClaim
from lvlm_attn.runtime.uncompiled import by_python, unless_answer
from lvlm_attn.runtime.vision_reader import VisionReader


class Session:
    """Hooks of one wrap and the state of its current prompt.

    Attributes:
        target: the model.
        interventions: the interventions, in order.
        editors: each of them with what it holds in this wrap.
        kernels: which path computes edited attention.
        details: what interventions found out about the request that `lvlm.generate` serves, by name of the method.
        modes: what `lvlm.generate` is doing with the model.
        bodies: what its hooks on layers do.
        editors_at: for every attention module of the model, the interventions with a site in it.
        is_resting: whether hooks that only look at prompts are off.
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
        self.editors = tuple(Editor(item, State()) for item in interventions)
        self.interventions = tuple(interventions)
        self.kernels = Dispatch.of(kernels)
        self.details: dict[str, Any] = {}
        self.modes = Modes()
        self._embedders = [editor for editor in self.editors if editor.item.overrides("edit_embeds")]
        self._needy = [item.title for item in interventions if item.needs_request()]
        self._edit_limit = edit_limit
        self._prompt = PromptState(target, interventions, no_image)
        self._claim = ThreadClaim(target)
        self.bodies = Bodies()
        self._hooks = Hooks()
        self.is_resting = False
        self._rested: bool | None = False
        self._changes: Changes | None = None
        self._watch: GenerateWatch | None = None
        self._given: Mapping[str, Any] | None = None
        self._labels: Tensor | None = None
        self._last_call: Call | None = None
        self._early: tuple[Tensor, Call] | None = None
        wanted = [rows for item in self.interventions for rows in item.vision(target)]
        if wanted and not target.family.encoder:
            readers = " and ".join(item.title for item in self.interventions if item.vision(target))
            raise UnsupportedError(
                f"{readers} uses what the image encoder attends to, and where the patches of {target.family.title}'s "
                f"encoder stand among its image tokens is not known here; use a method that needs the decoder alone."
            )
        self._vision = VisionReader(target.parts.base, target.parts.vision, wanted) if wanted else None
        self.sites = Sites.of(self.editors, target)
        self.editors_at: Editors = {
            module: Asked.of(index, self.sites.by_layer["attention"].get(index, ()))
            for index, module in enumerate(target.parts.attentions)
            if module is not None
        }

    @property
    def needs_attention(self) -> bool:
        """Whether the attention registry has to call us."""
        return any(asked.editors for asked in self.editors_at.values())

    def install(self) -> None:
        """Puts on the model what the interventions need.

        Raises:
            UnsupportedError: if the attention of a layer is out of reach. `remove` takes back what was done by then.
        """
        parts, hooks = self.target.parts, self._hooks
        if not self.editors:
            return
        INSTALLED.add(self)
        self._changes = Changes.join(self)
        if self.needs_attention:
            probe(self.target)
        hooks.before(parts.model, by_python(self._on_model), with_kwargs=True)
        hooks.before(parts.base, unless_answer(self._on_base), with_kwargs=True)
        hooks.before(parts.language_model, unless_answer(self._on_enter), with_kwargs=True)
        hooks.after(parts.language_model, unless_answer(self._on_leave), with_kwargs=True, always_call=True)
        for site in LAYER_SITES:
            for index, editors in self.sites.by_layer[site].items():
                call_of = partial(self._call_at, site, index)
                install_layer_hooks(hooks, self.target, site, index, editors, call_of, self.bodies)
        if self._vision is not None:
            self._changes.leave_to_python(self._vision.encoder)
            self._vision.install()
        hooks.after(parts.model, by_python(self._on_left), with_kwargs=True, always_call=True)
        if any(item.overrides("edit_logits") for item in self.interventions):
            hooks.after(parts.model, by_python(self._on_logits))
        if any(item.overrides("generated") for item in self.interventions):
            self._watch = GenerateWatch(parts.model, self._on_generated)
            self._watch.install()

    def remove(self) -> None:
        """Takes everything off, in reverse order, and forgets the prompt; safe to call again."""
        if self._watch is not None:
            self._watch.remove()
        if self._vision is not None:
            self._vision.remove()
        self._hooks.remove()
        if self.editors:
            Changes.leave(self)
        ACTIVE.set(others(self.editors_at))
        self._forget()
        INSTALLED.discard(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise LvlmAttnError("A wrapped model cannot be copied; leave the `with` block first.")

    def __reduce__(self) -> NoReturn:
        raise LvlmAttnError("A wrapped model cannot be pickled; leave the `with` block first.")

    # The hooks, in the order in which a forward reaches them.

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._claim.take()
        given = named_arguments(module, args, kwargs)
        self._labels = given.get("labels")
        self._early = None
        if self._changes is not None:
            self._changes.note_moment(
                self, is_answer=module is not self.target.parts.base and self._go_on(given)
            )

    def _go_on(self, given: Mapping[str, Any]) -> bool:
        """Begins the call of one generated token before the model is entered; returns whether it is one.

        Then a graph of the whole model needs nothing of the hooks inside it that graphs cannot hold.
        """
        mode, ids, cache = self.modes.current, given.get("input_ids"), given.get("past_key_values")
        is_plain = mode is PLAIN or (mode.request is not None and not mode.is_silent)
        if not is_plain or text_pass() is not None or not isinstance(ids, Tensor) or cache is None:
            return False
        if self._labels is not None or self._embedders or (mode.request is None and self._needy):
            return False
        if not self._prompt.goes_on(given, ids, int(cache.get_seq_length()), cache):
            return False
        if self._changes is not None:
            self._changes.settle()
        self._early = ids, self._call_of(given, {"past_key_values": cache}, ids, 1, is_prompt=False)
        ACTIVE.set((*others(self.editors_at), Acting(self._early[1], self.editors_at)))
        return True

    def _on_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._changes is not None:
            self._changes.settle()
        mode = self.modes.current
        if mode.is_silent:
            return
        if mode.request is None and text_pass() is None:
            self._refuse_without_request()
        self._claim.take()
        self._given = named_arguments(module, args, kwargs)

    def _on_enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if text_pass() is not None:
            return None
        if self.modes.current.is_silent:
            ACTIVE.set((*others(self.editors_at), Silent(self.editors_at)))
            return None
        self._claim.take()
        call = self._begin_call(kwargs)
        if call.start == 0 and self._changes is not None:
            # Passes over the prompt put hooks on layers for a while, which compiled layers would not see.
            self._changes.set_aside(module, "Layers of the decoder are")
        # A call of ours that an interrupt left behind is dropped here.
        ACTIVE.set((*others(self.editors_at), Acting(call, self.editors_at)))
        if call.start == 0:
            for item, state in self.editors:
                item.begin(Layer(None, call, state))
        changed = bool(call.inputs.get("logits_to_keep"))
        if changed:  # some decoders (gemma4) drop queries on the way, and every layer is told of all of them
            call.inputs["logits_to_keep"] = 0
        for item, state in self._embedders:
            context, before = Layer(None, call, state), call.inputs["inputs_embeds"]
            embeds = checked_embeds(item, context, item.edit_embeds(context, before), before)
            if embeds is not None:
                add(state.counts, "rows_embedded", embeds.shape[0] * embeds.shape[1])
                call.inputs["inputs_embeds"], changed = embeds, True
        return (args, call.inputs) if changed else None

    def _on_leave(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if text_pass() is not None:
            return
        if self.modes.current.is_silent:
            ACTIVE.set(others(self.editors_at))
            return
        running = self._end_call()
        if running is None:  # the call was refused, and its cache with it
            return
        cache = getattr(output, "past_key_values", None)
        self._prompt.keep_cache(kwargs.get("past_key_values") if cache is None else cache)
        if output is not None:
            self._refuse_missed(running.reached)

    def _on_left(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        """Ends a call of one token in a graph that the decoder's own hooks are left out of."""
        self._early = None
        if self._changes is not None:
            self._changes.moment.is_answer = False
        if text_pass() is not None or own_call(self.editors_at) is None:
            return
        running = self._end_call()
        if running is not None and output is not None:
            self._refuse_missed(running.reached | {TRACED})

    def _end_call(self) -> Acting | None:
        running = own_call(self.editors_at)
        self._last_call = None if running is None else running.call
        if self._last_call is not None:
            self._last_call.memo.clear()
            self._last_call.entering = None
        ACTIVE.set(others(self.editors_at))
        return running

    def _on_logits(self, module: nn.Module, args: Any, output: Any) -> Any:
        call, self._last_call = self._last_call, None
        if call is None or getattr(output, "logits", None) is None:
            return None
        for item, state in self.editors:
            if item.overrides("edit_logits"):
                if getattr(output, "loss", None) is not None:
                    raise UnsupportedError(
                        f"{item.title} changes the logits, of which the model has taken its loss by then; leave labels "
                        f"out, and take the loss of the logits that come back."
                    )
                context = Layer(None, call, state)
                edited = checked_logits(
                    item, context, item.edit_logits(context, output.logits), output.logits
                )
                output.logits = output.logits if edited is None else edited
        return output

    def _on_generated(self, output: Any, options: Mapping[str, Any]) -> None:
        mode = self.modes.current
        if mode.is_silent:
            return
        ended = Ended(self.target, output, options, mode.request, self._undisturbed)
        for item, state in self.editors:
            if item.overrides("generated"):
                item.generated(ended, state)

    @contextmanager
    def _undisturbed(self, own: State) -> Iterator[None]:
        """Lets a prompt be decoded in between; only what `own` holds changes."""
        prompt, self._prompt = self._prompt, self._prompt.fresh()
        kept = [
            (state, state.memory, copy.deepcopy(state.stats), copy.deepcopy(state.counts))
            for _, state in self.editors
            if state is not own
        ]
        try:
            yield
        finally:
            self._prompt = prompt
            for state, memory, stats, counts in kept:
                state.memory, state.stats, state.counts = memory, stats, counts

    def result(self) -> Any:
        """What the first intervention that has a result found out; None for nothing."""
        found = (item.result(state) for item, state in self.editors if item.overrides("result"))
        return next(found, None)

    def _call_at(self, site: str, index: int) -> Call | None:
        """The running call, for a site of a layer that it has reached."""
        running = own_call(self.editors_at)
        if running is None:
            return None
        running.reached.add((site, index))
        return running.call

    def rest(self, is_resting: bool) -> None:
        """Takes hooks that only look at prompts off for a while, or puts them back."""
        if self._rested is not is_resting:
            self._rested = None  # an interrupt leaves it so, and then the next call does all of this again
            self.is_resting = is_resting
            self._hooks.rest(is_resting)
            if self._changes is not None:
                self._changes.note_rest()
            self._rested = is_resting

    def _refuse_missed(self, reached: set[tuple[str, int]]) -> None:
        """Refuses a call in which compiled code went past a site."""
        if TRACED not in reached:
            return
        wanted = {
            (site, index)
            for site, layers in self.sites.by_layer.items()
            for index, editors in layers.items()
            if not (self.is_resting and rests(site, editors))
        }
        if missed := wanted - reached:
            site, index = min(missed)
            raise LvlmAttnError(f"The {site} of layer {index} was not reached. {STALE}")

    def _begin_call(self, kwargs: dict[str, Any]) -> Call:
        given, self._given = self._given, None
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
        early, self._early = self._early, None
        if early is not None and early[0] is ids:
            early[1].inputs = dict(kwargs)
            return early[1]
        cache = kwargs.get("past_key_values")
        if cache is None or int(cache.get_seq_length()) == 0:
            self._forget()
        is_prompt = self._prompt.advance(given, kwargs, ids)
        labels, self._labels = self._labels, None
        call = self._call_of(given, kwargs, ids, kwargs["inputs_embeds"].shape[1], is_prompt=is_prompt)
        call.labels = labels if labels is not None and labels.shape == ids.shape else None
        return call

    def _call_of(
        self, given: Mapping[str, Any], kwargs: dict[str, Any], ids: Tensor, queries: int, *, is_prompt: bool
    ) -> Call:
        mode, layout, length = self.modes.current, self._prompt.layout, self._prompt.length
        assert layout is not None
        text_mask = self.target.family.mask_of(cast("Any", self.target.parts.base).config, given)
        has_own_mask = has_dense_mask(given) and running_generate(self.target.parts.base) is None
        self.rest(not is_prompt)
        is_step = queries == 1 and not (is_prompt or has_own_mask or text_mask == "chunked")
        return Call(
            target=self.target,
            prompt=layout,
            start=length - queries,
            queries=queries,
            is_prompt=is_prompt,
            is_valid=self._prompt.is_valid(),
            edit_limit=self._edit_limit,
            inputs=dict(kwargs),
            ids=ids[:, -queries:],
            text_heads=lambda layers: text_heads(self.target, layout, kwargs, layers),
            kernels=self.kernels,
            text_mask=text_mask,
            has_own_mask=has_own_mask,
            vision=self._vision.find(given) if self._vision is not None and is_prompt else None,
            details=self.details,
            request=mode.request,
            views=mode.views,
            interventions=self.interventions,
            plans=self._prompt.plans if is_step else None,
        )

    def _refuse_without_request(self) -> None:
        if self._needy:
            needy = " and ".join(self._needy)
            raise UnsupportedError(
                f"{needy} cannot act in a plain call of the model; call lvlm.generate(**inputs, ...) "
                f"or lvlm.generate(images=[...], prompts=[...]), where lvlm is what `with wrap(...) as lvlm` gives."
            )

    def _forget(self) -> None:
        self._prompt.forget()
        self._last_call = self._early = None
        for _, state in self.editors:
            state.memory = {}
