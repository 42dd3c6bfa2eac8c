"""The model `lvlm_attn` of lmms-eval: any model of this project, bare or with methods.

    python -m lmms_eval --model lvlm_attn --model_args pretrained=llava-hf/llava-1.5-7b-hf,intervene=var:rho=0.5 ...

The whole of a method stands in `model_args`, which lmms-eval's response cache takes into its keys, so that answers with
another setting are never reused. Blocks of reasoning are left in, since lmms-eval strips them itself.

Written against lmms-eval 0.7.3; found by its entry-point group `lmms_eval.models`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from lvlm_attn.errors import LvlmAttnError, closest

_ARGUMENTS = ("pretrained", "intervene", "dtype", "revision", "attn_implementation", "device_map", "seed")


def manifests() -> list[ModelManifest]:
    """What the entry point tells lmms-eval."""
    place = f"{__name__}."
    return [
        ModelManifest(
            model_id="lvlm_attn",
            simple_class_path=f"{place}SimpleModel",
            chat_class_path=f"{place}ChatModel",
        )
    ]


class _Model(lmms):  # type: ignore[misc]
    """What both kinds share; each says how a request becomes a conversation.

    Args:
        pretrained: `toy`, a hub id, or a folder.
        intervene: methods as on the command line; put quotes around them where they hold commas.
        batch_size: prompts at once.
        device: where the model goes; lmms-eval passes its `--device`.
        dtype: as for `lvlm_attn.load`.
        revision: of the checkpoint.
        attn_implementation: the attention backend.
        device_map: `auto` spreads the model over all devices.
        seed: seeds sampling, per sample.
        **more: `max_batch_size`, which lmms-eval passes; anything else is refused.

    Raises:
        LvlmAttnError: an unknown argument, method or parameter, or a model that cannot be loaded.
    """

    def __init__(
        self,
        pretrained: str = "toy",
        intervene: str = "",
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        attn_implementation: str | None = None,
        device_map: str | None = None,
        seed: int = 0,
        **more: Any,
    ) -> None:
        super().__init__()
        from lvlm_attn.evals.core.ranks import local_device
        from lvlm_attn.integrations.answering import interventions_of
        from lvlm_attn.loading import load

        _refuse_unknown(more)
        self.interventions = interventions_of(intervene)
        self.batch_size = _size(batch_size)
        self._seed = int(seed)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()
            self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        given = {"revision": revision, "attn_implementation": attn_implementation, "device_map": device_map}
        place = None if device is None or device_map is not None else local_device(device)
        options = {key: value for key, value in given.items() if value is not None}
        self._model, self.processor = load(pretrained, device=place, dtype=dtype, **options)
        self.device = self._model.device

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Not offered: methods act while a model generates."""
        raise LvlmAttnError(
            "lvlm_attn answers tasks of output_type generate_until; this one asks for likelihoods."
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not offered."""
        raise LvlmAttnError(
            "lvlm_attn answers tasks of output_type generate_until; this one has several rounds."
        )

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers requests in their order, those with the same settings together in batches.

        Raises:
            LvlmAttnError: a request that cannot be asked; nothing is answered with silence.
        """
        from tqdm import tqdm

        from lvlm_attn.integrations.answering import answer, cut_at, decoding_of, same_options, stops_of

        found: list[GenerationResult | None] = [None] * len(requests)
        groups = same_options([self._options(request) for request in requests])
        with tqdm(total=len(requests), desc="lvlm_attn", unit="sample", disable=self.rank > 0) as bar:
            for places in groups.values():
                options, task = self._options(requests[places[0]]), requests[places[0]].args[-2]
                decoding, stops = decoding_of(options, f"task {task}"), stops_of(options)
                asks = self._asks([requests[place] for place in places])
                answers = answer(
                    self._model,
                    self.processor,
                    self.interventions,
                    asks,
                    decoding,
                    self.batch_size,
                    self._seed,
                )
                for place, said in zip(places, answers, strict=True):
                    counts = TokenCounts(input_tokens=said.n_prompt_tokens, output_tokens=said.n_new_tokens)
                    found[place] = GenerationResult(cut_at(said.raw_text, stops), counts)
                    bar.update()
        return [item for item in found if item is not None]

    def _asks(self, requests: Sequence[Instance]) -> list[Any]:
        asks, times = [], dict[str, int]()
        for request in requests:
            *_, doc_id, task, split = request.args
            name = f"{task}/{split}/{doc_id}"
            times[name] = times.get(name, 0) + 1
            asks.append(self._ask(f"{name}/{times[name]}", request, self.task_dict[task][split][doc_id]))
        return asks

    def _options(self, request: Instance) -> dict[str, Any]:
        """The settings among the arguments of a request."""
        raise NotImplementedError

    def _ask(self, name: str, request: Instance, doc: Any) -> Any:
        """What a request asks about a document."""
        raise NotImplementedError


class ChatModel(_Model):
    """Asked by messages, lmms-eval's default."""

    is_simple: ClassVar[bool] = False

    def _options(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[2])

    def _ask(self, name: str, request: Instance, doc: Any) -> Any:
        from lmms_eval.protocol import ChatMessages

        from lvlm_attn.integrations.answering import Ask

        messages: Callable[[Any], Any] = request.args[1]
        return Ask(name, ChatMessages(messages=messages(doc)).to_hf_messages())


class SimpleModel(_Model):
    """Asked by a text and its images (`--force_simple`)."""

    is_simple: ClassVar[bool] = True

    def _options(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1])

    def _ask(self, name: str, request: Instance, doc: Any) -> Any:
        from lvlm_attn.integrations.answering import Ask

        visuals = request.args[2](doc) if request.args[2] is not None else None
        return Ask(name, str(request.args[0]), list(visuals or ()))


def _refuse_unknown(more: dict[str, Any]) -> None:
    for name in more:
        if name == "max_batch_size":
            continue
        known = ", ".join(_ARGUMENTS)
        raise LvlmAttnError(
            f"model_args has an unknown {name!r}.{closest(name, _ARGUMENTS)} Known are {known}; where it belongs to a "
            "method, put quotes around the whole of intervene."
        )


def _size(batch_size: int | str) -> int:
    try:
        size = int(batch_size)
    except ValueError:
        size = 0
    if size < 1:
        raise LvlmAttnError(f"batch_size is {batch_size!r}; give a whole number from 1 up.")
    return size
