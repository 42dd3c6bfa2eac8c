"""`wrap`: put interventions on a model for the length of a `with` block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from torch import nn
from transformers import LogitsProcessorList

from lvlm_attn.decoding.engine import generate
from lvlm_attn.decoding.forced import Forced, answer_ids
from lvlm_attn.decoding.options import split_options
from lvlm_attn.decoding.roomy_cache import with_roomy_cache
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import family_of, parts_of
from lvlm_attn.families.devices import execution_device
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.layers import format_layers
from lvlm_attn.interventions.report import Report
from lvlm_attn.interventions.summary import default_summary
from lvlm_attn.kernels.dispatch import requested
from lvlm_attn.prompts.chat import decode_answers
from lvlm_attn.prompts.request import Request
from lvlm_attn.runtime.changes import Changes, attention_configs
from lvlm_attn.runtime.registry import NAMES
from lvlm_attn.runtime.row_counts import settle
from lvlm_attn.runtime.session import Session
from lvlm_attn.runtime.transformers_private import attention_of
from lvlm_attn.runtime.uncompiled import by_python

TRIES = 5
"""How often a model is restored where interrupts fall into restoring it; once it is done, more do nothing."""


class Wrapped(ExitStack):
    """A model with interventions, made by `wrap`; they act inside the `with` block and nowhere else.

    An interrupt on the way out is raised after the model has been restored. That is why leaving is a loop of
    contextlib's over our steps: a function of ours could be interrupted before its first line, with nobody to go on.
    """

    def __init__(
        self,
        model: nn.Module,
        interventions: Sequence[Intervention],
        processor: Any | None,
        edit_limit: int,
        no_image: str,
        kernels: str = "auto",
    ):
        super().__init__()
        self.model: nn.Module | None = model
        self.processor = processor
        self._interventions = tuple(interventions)
        self._edit_limit = edit_limit
        self._no_image = no_image
        self._kernels = kernels
        self._session: Session | None = None
        self._entered = False
        self._last: Report | None = None
        self._details: dict[str, Any] = {}
        self._result: Any = None

    def __enter__(self) -> Wrapped:
        if self._entered:
            raise LvlmAttnError("This wrap has been entered already; call la.wrap(...) again for a new one.")
        model = cast("nn.Module", self.model)
        # Everything that can fail for reasons of the user's comes before the first change to the model.
        target = target_of(model, self.processor)
        _refuse_repeats(model, self._interventions, target)
        fitted = [item.fit(target) for item in self._interventions]
        session = Session(
            target,
            [item for item in fitted if not item.is_neutral()],
            edit_limit=self._edit_limit,
            no_image=self._no_image,
            kernels=self._kernels,
        )
        if session.needs_attention:
            session.kernels.check(execution_device(model))
        self._entered = True
        self._session = session
        try:
            for _ in range(TRIES):
                self.callback(self._restore)
            session.install()
            return self
        except BaseException:
            self.__exit__(None, None, None)
            raise

    @by_python
    def generate(
        self,
        images: Any = None,
        prompts: Sequence[Any] | str | None = None,
        *,
        answers: Sequence[str] | torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Generates inside the wrap, from images and prompts or from tensors.

        Args:
            images: one image per prompt, a list of images for a prompt with several, or None for a prompt without. An
                image is a PIL image, a file, an address, or an array of bytes.
            prompts: questions in plain words, or conversations: lists of messages `{"role": ..., "content": ...}` with
                text and image parts. The processor's chat template is put around them once. `<image>` in a question
                says where an image stands; a text that is a whole prompt already, with the template's own marks
                around its question, is taken as it is.
            answers: answers to follow instead of choosing, as texts or token ids, for maps and measurements of what
                someone else said: every step is that of generating this answer.
            **options: what `model.generate` takes. Without `images` and `prompts`, its tensors as well.

        Returns:
            A list of answers (text) for `images` and `prompts`, or transformers' output object with
            `return_dict_in_generate=True`; what `model.generate` returns otherwise. With a view beside the
            prompt (`VCD`, ...), `scores` and `logits` are those after the views were joined, and
            `past_key_values` is None.

        Raises:
            LvlmAttnError: outside the `with` block, without a processor, if there are not as many images as prompts
                or places for them, or if a prompt or image is something else.

        Example:
            >>> with wrap(model, VHR(), processor=processor) as lvlm:  # doctest: +SKIP
            ...     lvlm.generate(images=[image], prompts=["Is there a dog in the image?"], max_new_tokens=8)
            ['Yes']
        """
        session = self._entered_session()
        if answers is not None:
            return self._follow(images, prompts, answers, options)
        if prompts is None and images is None:
            if not any(item.needs_request() for item in session.interventions):
                model = cast("Any", self.model)
                return model.generate(**with_roomy_cache(model, options))
            inputs, options = split_options(options)
            return self.ask(Request.of_tensors(session.target, inputs), **options)[0]
        output, request = self.ask(Request.of_prompts(session.target, images, prompts), **options)
        if not torch.is_tensor(output):
            return output
        return decode_answers(self.processor, output, request.inputs["input_ids"].shape[1])

    def _follow(self, images: Any, prompts: Any, answers: Any, options: dict[str, Any]) -> Any:
        """Decodes given answers, greedily and with all else banned."""
        target = self.target
        if prompts is None and images is None:
            inputs, options = split_options(options)
            request = Request.of_tensors(target, inputs)
        else:
            request = Request.of_prompts(target, images, prompts)
        config = cast("Any", target.model).generation_config
        ids = answer_ids(answers, request.batch, self.processor, config.eos_token_id)
        options |= {"max_new_tokens": ids.shape[1], "do_sample": False, "num_beams": 1}
        processors = [*(options.get("logits_processor") or ()), Forced(ids)]
        options["logits_processor"] = LogitsProcessorList(processors)
        output, request = self.ask(request, **options)
        is_text = prompts is not None and torch.is_tensor(output)
        return (
            decode_answers(self.processor, output, request.inputs["input_ids"].shape[1])
            if is_text
            else output
        )

    @by_python
    def ask(self, request: Request, **options: Any) -> tuple[Any, Request]:
        """Generates for a request.

        Args:
            request: the prompts; `Request.of_prompts` and `Request.of_tensors` make one for `lvlm.target`.
            **options: what else `model.generate` takes.

        Returns:
            What `model.generate` returns, and the request as interventions rewrote it.

        Raises:
            LvlmAttnError: outside the `with` block, or if an intervention cannot act on the request.
        """
        session = self._entered_session()
        self._details = request.details
        return generate(session, request, options)

    @property
    def target(self) -> Target:
        """The model as interventions see it; inside the `with` block only."""
        return self._entered_session().target

    @property
    def details(self) -> dict[str, Any]:
        """What methods found out in the last `lvlm.generate` (maps, masks, boxes), by the name of the method."""
        return self._details

    def _entered_session(self) -> Session:
        if self._session is None:
            raise LvlmAttnError("lvlm.generate works inside the `with` block only; enter the wrap first.")
        return self._session

    def report(self) -> Report:
        """What each intervention did so far: layers, heads, weight moved.

        Print it, or take `.rows` and `.to_dict()`. It stays available after the block.
        """
        if self._session is not None:
            return self._reported(self._session)
        if self._last is None:
            raise LvlmAttnError("There is nothing to report before the wrap is entered.")
        return self._last

    def _reported(self, session: Session) -> Report:
        backend = attention_of(attention_configs(session.target)[0])
        for _, state in session.editors:
            settle(state.stats)
        return Report(
            model=f"{session.target.family.title}, {session.target.layers} layers of {session.target.heads} heads",
            backend=NAMES.backend(backend) or backend,
            kernels=session.kernels.describe(),
            skipped=tuple(
                format_layers(session.sites.skipped.get(place, ())).strip("[]")
                for place in range(len(session.interventions))
            ),
            interventions=tuple(written_form(item) for item in session.interventions),
            rows=tuple(
                item.summarise(state.stats) or default_summary(state) for item, state in session.editors
            ),
        )

    @property
    def maps(self) -> Any:
        """What `la.record()` kept of the last prompt: `lvlm_attn.AttentionMaps`; also after the block.

        Raises:
            LvlmAttnError: if there is no recorder in the wrap, or nothing was recorded yet.
        """
        found = self._result if self._session is None else self._session.result()
        if found is None:
            raise LvlmAttnError(
                "Nothing was recorded; put la.record() among the interventions of the wrap, and generate before you "
                "ask for lvlm.maps."
            )
        return found

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """The interventions as fitted to the model, those that change nothing left out."""
        return self._session.interventions if self._session else self._interventions

    def _restore(self) -> None:
        session = self._session
        if session is None:
            return
        if self._last is None:
            try:
                self._last = self._reported(session)
                self._result = session.result()
            except Exception:  # a report must never keep the model from being restored
                self._last = None
        session.remove()
        self.model = None
        self._session = None


def wrap(
    model: nn.Module,
    *interventions: Intervention,
    processor: Any | None = None,
    edit_limit: int = 2**30,
    no_image: str = "error",
    kernels: str = "auto",
) -> Wrapped:
    """Puts interventions on a vision-language model for the length of a `with` block.

    Inside the block, `model.generate(**inputs)` and `model(**inputs)` are called as always. On leaving, also
    by an exception, the model is as it was. Wraps nest. Interventions act in the order given.

    Args:
        model: a `...ForConditionalGeneration` model from transformers, of a family in `lvlm_attn.models()`.
        *interventions: what to do; see `lvlm_attn.methods()`.
        processor: the model's processor, for methods that have to see the image and for `lvlm.generate`.
        edit_limit: most bytes of a full weight matrix that `edit_weights` may hold per layer.
        no_image: `"error"` refuses a batch without any image if an intervention needs one; `"pass"` runs it
            unchanged.
        kernels: which path computes edited attention: `"triton"`, `"torch"`, or `"auto"`, which takes Triton on
            a GPU where the kernels can do what is asked. The environment variable `LVLM_ATTN_KERNELS` sets
            what `"auto"` means.

    Returns:
        A context manager; `as lvlm` gives `lvlm.report()` and `lvlm.generate(...)`.

    Raises:
        LvlmAttnError: if the model or a parameter does not fit. Nothing has been changed by then.

    Example:
        >>> with wrap(model, VAR(rho=0.5), VHR(alpha=2.0)) as lvlm:  # doctest: +SKIP
        ...     ids = model.generate(**inputs, max_new_tokens=64)
        ...     print(lvlm.report())
    """
    for item in interventions:
        if isinstance(item, type) and issubclass(item, Intervention):
            raise LvlmAttnError(f"{item.__name__} is a class; pass an instance, {item.__name__}().")
        if not isinstance(item, Intervention):
            raise LvlmAttnError(
                f"{item!r} is no intervention; pass objects such as la.VAR(), or *la.parse('var+vhr')."
            )
    if no_image not in ("error", "pass"):
        raise LvlmAttnError(f"no_image={no_image!r} must be 'error' or 'pass'.")
    requested(kernels)
    return Wrapped(model, interventions, processor, edit_limit, no_image, kernels)


def target_of(model: nn.Module, processor: Any | None = None) -> Target:
    """What interventions are told about a model.

    Raises:
        UnsupportedError: if the family is not known.
    """
    if not isinstance(model, nn.Module):
        raise LvlmAttnError(
            f"wrap got {type(model).__name__!r} as its model; pass the model itself, as in wrap(model, VAR())."
        )
    return Target(model, family_of(model), parts_of(model), processor)


def acting_on(target: Target) -> tuple[Intervention, ...]:
    """The interventions of all wraps that are active on a model."""
    return tuple(item for session in sessions_on(target) for item in session.interventions)


def written_form(item: Intervention) -> str:
    """An intervention as text, or its name alone where a parameter has no written form."""
    try:
        return str(item)
    except LvlmAttnError:
        return f"{item.name or item.title} (given in code)"


def sessions_on(target: Target) -> tuple[Session, ...]:
    """The wraps that are active on a model, outermost first."""
    changes = Changes.of(target)
    return () if changes is None else tuple(changes.sessions)


def _refuse_repeats(model: nn.Module, interventions: Sequence[Intervention], target: Target) -> None:
    present: list[type[Intervention]] = [
        type(item) for other in sessions_on(target) for item in other.interventions
    ]
    for item in interventions:
        kind = type(item)
        if item.name and kind in present:
            raise LvlmAttnError(
                f"{kind.__name__} is on this model already; give it once per model, with all its layers."
            )
        for other in present:
            reason = kind.conflicts.get(other.name) or other.conflicts.get(kind.name)
            if reason:
                raise UnsupportedError(
                    f"{kind.__name__} and {other.__name__} cannot be combined: {reason}; use one of them."
                )
        present.append(kind)
