"""A vision-language model, with or without interventions, as an answerer for the runner."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import MinPLogitsWarper

from lvlm_attn.decoding.features import encoding_once
from lvlm_attn.errors import LvlmAttnError, closest
from lvlm_attn.evals.core.first_token import PAIRS, FirstToken, choices_of
from lvlm_attn.evals.core.runner import Answer
from lvlm_attn.evals.core.sampling import SeededSampler
from lvlm_attn.prompts.chat import format_prompt
from lvlm_attn.prompts.request import Request
from lvlm_attn.prompts.template import asked
from lvlm_attn.runtime.transformers_private import keeping_processors
from lvlm_attn.wrapping import Wrapped, target_of, wrap

if TYPE_CHECKING:
    from PIL.Image import Image

    from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention

DECODINGS = ("greedy", "sample")


@dataclass(frozen=True)
class Decoding:
    """How answers are generated.

    Attributes:
        decode: ``greedy``, or ``sample`` from the whole distribution at ``temperature``.
        max_new_tokens: length limit of an answer.
        temperature: for ``sample``; 1 is the model's own distribution.
        suffix: text put after every question, blank or line break included.
        plausibility: for ``sample``; only tokens at least this many times as likely as the likeliest are drawn. 0
            leaves the distribution whole.

    Raises:
        LvlmAttnError: unknown decoding, a limit or temperature that is not positive, or a cut outside 0 to 1.
    """

    decode: str = "greedy"
    max_new_tokens: int = 16
    temperature: float = 1.0
    suffix: str = ""
    plausibility: float = 0.0

    def __post_init__(self) -> None:
        if self.decode not in DECODINGS:
            raise LvlmAttnError(
                f"no decoding {self.decode!r}.{closest(self.decode, DECODINGS)} Choose greedy or sample."
            )
        if self.max_new_tokens < 1:
            raise LvlmAttnError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        if not self.temperature > 0:
            raise LvlmAttnError(f"temperature is {self.temperature}; it must be above 0.")
        if not 0 <= self.plausibility <= 1:
            raise LvlmAttnError(f"plausibility is {self.plausibility}; it lies between 0 and 1.")


class ModelAnswerer:
    """Answers prompts with a model; use it as a context manager, which holds the interventions in place.

    Args:
        model: the model.
        processor: its processor.
        interventions: what to put on the model; empty for the bare model.
        decoding: how to generate.
        asks_yes_no: keep the probabilities of yes and no at the first answer token.
        asks_letters: keep those of A and B.

    Example:
        >>> with ModelAnswerer(model, processor, la.parse("var")) as answerer:  # doctest: +SKIP
        ...     answerer.answer([image], ["Is there a dog in the image?"], seeds=[0])[0].raw_text
        'Yes'
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        interventions: Sequence[Intervention] = (),
        decoding: Decoding | None = None,
        asks_yes_no: bool = False,
        asks_letters: bool = False,
    ) -> None:
        self.model, self.processor = model, processor
        self.decoding = decoding or Decoding()
        self._interventions = tuple(interventions)
        self._stack = ExitStack()
        self.wrapped: Wrapped | None = None
        self._target: Target | None = None
        self._tokenizer = getattr(processor, "tokenizer", processor)
        words = PAIRS[0] * asks_yes_no + PAIRS[1] * asks_letters
        self._choices = choices_of(self._tokenizer, words) if words else None
        config = copy.deepcopy(model.generation_config)
        beams = max((item.beams for item in self._interventions), default=1)
        if beams > 1 and self.decoding.decode == "sample":
            raise LvlmAttnError("a method that searches with beams does not sample; use greedy decoding.")
        config.do_sample, config.num_beams, config.num_return_sequences = False, beams, 1
        config.temperature, config.top_p, config.top_k = 1.0, 1.0, 50
        config.max_length, config.max_new_tokens = None, self.decoding.max_new_tokens
        ends = config.eos_token_id
        if ends is None:
            ends = self._tokenizer.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [] if ends is None else [ends])
        if config.pad_token_id is None:
            config.pad_token_id = self._tokenizer.pad_token_id
        if config.pad_token_id is None and self._ends:
            config.pad_token_id = min(self._ends)
        self._config = config

    def __enter__(self) -> ModelAnswerer:
        """Puts the interventions on the model."""
        if self._interventions:
            self.wrapped = self._stack.enter_context(
                wrap(self.model, *self._interventions, processor=self.processor)
            )
        self._target = self.wrapped.target if self.wrapped else target_of(self.model, self.processor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restores the model."""
        self._target = None
        self._stack.close()

    def describe(self) -> dict[str, Any]:
        """What decides the answers besides the model's weights, for the run's settings."""
        return {
            "decode": self.decoding.decode,
            "temperature": self.decoding.temperature if self.decoding.decode == "sample" else None,
            "max_new_tokens": self.decoding.max_new_tokens,
            **({"plausibility": self.decoding.plausibility} if self.decoding.plausibility else {}),
            **({"num_beams": self._config.num_beams} if self._config.num_beams > 1 else {}),
            "repetition_penalty": self._config.repetition_penalty,
            "suffix": self.decoding.suffix,
            "prompt_template": format_prompt(self.processor, "{question}"),
        }

    @property
    def rows_at_once(self) -> int | None:
        """How many prompts the interventions take at once; None for any number."""
        limits = [item.rows_at_once() for item in self._interventions]
        return min([limit for limit in limits if limit is not None], default=None)

    def answer(
        self, images: Sequence[Image | Sequence[Image]], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Answer]:
        """Answers a left-padded batch; sampling depends on each row's seed alone, not on its batch."""
        count = self.rows_at_once or len(prompts)
        parts = [slice(start, start + count) for start in range(0, len(prompts), max(count, 1))]
        return [
            answer
            for part in parts
            for answer in self.answer_prepared(self.prepare(images[part], prompts[part]), seeds[part])
        ]

    def prepare(self, images: Sequence[Image | Sequence[Image]], prompts: Sequence[str]) -> Request:
        """Everything that needs the processor and not the model; may run in another thread.

        Prompts are questions, whatever they hold: the chat template is put around them.

        Raises:
            LvlmAttnError: outside the ``with`` block, or a prompt holds the token that stands for an image.
        """
        texts = [prompt + self.decoding.suffix for prompt in prompts]
        return self.prepare_given(images, [[asked(text)] for text in texts])

    def prepare_given(self, images: Sequence[Image | Sequence[Image]], prompts: Sequence[Any]) -> Request:
        """As `prepare`, of prompts in any form that `lvlm.generate` takes, without suffix.

        Raises:
            LvlmAttnError: outside the ``with`` block.
        """
        if self._target is None:
            raise LvlmAttnError("the answerer works inside its `with` block only.")
        made = Request.of_prompts(self._target, list(images), prompts)
        return dataclasses.replace(made, encodes_once=True)

    @torch.inference_mode()
    def answer_prepared(
        self, request: Request, seeds: Sequence[int], max_new_tokens: int | None = None
    ) -> list[Answer]:
        """Answers what :meth:`prepare` made, ``rows_at_once`` prompts at most.

        Args:
            request: the prompts.
            seeds: one per prompt, for sampling.
            max_new_tokens: another length limit than that of the decoding.
        """
        processors: list[Any] = []
        first = None
        if self._choices is not None:
            first = FirstToken(self._choices)
            processors.append(first)
        if self.decoding.decode == "sample":
            if self.decoding.plausibility:
                processors.append(MinPLogitsWarper(self.decoding.plausibility))
            processors.append(SeededSampler(seeds, self.decoding.temperature))
        config = self._config
        if max_new_tokens is not None:
            config = copy.deepcopy(config)
            config.max_new_tokens = max_new_tokens
        options = {"generation_config": config, "logits_processor": processors}
        texts = cast("list[str]", request.texts)
        if self.wrapped is not None:
            output, request = self.wrapped.ask(request, **options)
        else:
            with keeping_processors(self.model, processors), encoding_once(request):
                output = self.model.generate(**request.inputs, **options)
        inputs = request.inputs
        length = inputs["input_ids"].shape[1]
        lengths = inputs["attention_mask"].sum(1).tolist()
        answers = []
        for row, ids in enumerate(output[:, length:].tolist()):
            end = next((place for place, token in enumerate(ids) if token in self._ends), None)
            kept = ids if end is None else ids[:end]
            answers.append(
                Answer(
                    raw_text=self._tokenizer.decode(kept, skip_special_tokens=True),
                    prompt=texts[row],
                    n_prompt_tokens=int(lengths[row]),
                    n_new_tokens=len(kept) + (end is not None),
                    finish_reason="length" if end is None else "eos",
                    first_token=first.of_row(row * self._config.num_beams) if first is not None else None,
                )
            )
        return answers
