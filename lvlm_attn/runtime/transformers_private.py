"""Everything that transformers does not promise to keep, reached here and nowhere else.

Each function says what to do when a new version of transformers breaks it, and
`tests/runtime/test_transformers_private.py` holds each of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any, cast

from torch import Tensor, nn
from transformers import CompileConfig, GenerationMixin, LogitsProcessorList
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.unwrap import unwrapped

Attend = Callable[..., tuple[Tensor, Tensor | None]]

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


def attention_of(config: Any) -> str:
    """The name of the attention function that the layers of a configuration ask for.

    When it fails: find where `PreTrainedModel.set_attn_implementation` keeps the name now.
    """
    return str(config._attn_implementation)


def set_attention_of(config: Any, name: str | None) -> None:
    """Changes the attention function of one configuration, without a check and without its sub-configurations.

    None is what a configuration has that names none.

    When it fails: take what `PreTrainedModel.set_attn_implementation` writes; the public setter goes on to all
    sub-configurations.
    """
    config._attn_implementation_internal = name


def is_registered(name: str) -> bool:
    """Whether both registries hold a name: attention functions and mask functions.

    When it fails: see `register`.
    """
    return name in ALL_ATTENTION_FUNCTIONS.valid_keys() and has_mask(name)


def has_mask(backend: str) -> bool:
    """Whether transformers makes masks for a backend.

    When it fails: see `register`.
    """
    return backend in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys()


def register(name: str, attend: Attend, backend: str, whose: str = "Attention") -> None:
    """Registers an attention function that wants the masks of `backend`.

    A name in the attention registry without its twin in the mask registry makes transformers drop the causal mask
    without a word, so both are written together.

    When it fails: follow how `AttentionInterface` and `AttentionMaskInterface` are registered in the documentation
    of transformers, and check that layers still look functions up by name.

    Args:
        name: what a configuration asks for.
        attend: called as `attend(module, query, key, value, mask, **kwargs)`.
        backend: whose masks it wants.
        whose: how the error begins.

    Raises:
        UnsupportedError: if transformers has no mask function for the backend.
    """
    if not has_mask(backend):
        raise UnsupportedError(
            f"{whose} backend {backend!r} has no mask function in transformers, so causality cannot be kept; load "
            f"the model with attn_implementation='sdpa'."
        )
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[backend])
    ALL_ATTENTION_FUNCTIONS.register(name, attend)


def backend_function(backend: str, module: nn.Module) -> Attend:
    """The attention function behind a backend's name, for an attention module.

    When it fails: look up how the module's forward chooses its function; eager attention is in no registry, each
    modeling file defines its own `eager_attention_forward`.

    Raises:
        UnsupportedError: if the module's file has no eager attention.
    """
    if backend != "eager":
        return cast("Attend", ALL_ATTENTION_FUNCTIONS[backend])
    for kind in type(module).__mro__:
        function = getattr(sys.modules.get(kind.__module__), "eager_attention_forward", None)
        if function is not None:
            return cast("Attend", function)
    raise UnsupportedError(
        f"{type(module).__name__} has no eager attention function; load the model with "
        f"attn_implementation='sdpa'."
    )


def is_plain_sdpa(backend: str) -> bool:
    """Whether a backend's name stands for SDPA as transformers has it, and not for what a user put in its place.

    When it fails: see `backend_function`. False only makes decoding slower.
    """
    return backend == "sdpa" and ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward


def attention_functions() -> tuple[tuple[str, Attend], ...]:
    """The attention functions by name.

    When it fails: see `register`. They only tell whether a model would compute the same as before.
    """
    return tuple(
        (name, ALL_ATTENTION_FUNCTIONS[name]) for name in sorted(ALL_ATTENTION_FUNCTIONS.valid_keys())
    )


def is_capturing_hook(hook: Any) -> bool:
    """Whether a hook is one by which transformers collects hidden states and weights, which changes nothing.

    When it fails: return False; then models that have once been asked for such outputs are computed again where they
    need not be.
    """
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"


def generate_variables() -> Iterator[Mapping[str, Any]]:
    """The local variables of the `generate` calls on the stack, innermost first.

    `self`, `input_ids` (the prompt, padding and beams included) and `generation_config` are relied on.

    When it fails: find what `GenerationMixin.generate` calls the prompt just before it calls the decoding loop.

    Raises:
        UnsupportedError: if torch.compile made other code of `generate`.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code is _GENERATE:
            yield frame.f_locals
        elif code.co_filename == _GENERATE.co_filename and _GENERATE.co_name in _names(code.co_name):
            raise UnsupportedError(
                "torch.compile made code of `generate` itself, in which its prompt is not found; compile the model, "
                "and call generate from outside of what is compiled."
            )
        frame = frame.f_back


def _names(name: str) -> tuple[str, str]:
    """The name of a function that is as written or made by torch.compile, and of one that goes on with its rest.

    When it fails: see how `torch._dynamo.resume_execution` names the functions that go on after a graph break.
    """
    start = "torch_dynamo_resume_in_"
    return name, name.removeprefix(start).partition("_at_")[0] if name.startswith(start) else name


CHECKPOINT = "_gradient_checkpointing_func"
"""The attribute of a layer that holds its checkpointing function; see `checkpoints_layer`."""


def checkpoints_layer(layer: nn.Module) -> bool:
    """Whether a layer is computed again in the backward pass.

    When it fails: see what `GradientCheckpointingLayer` looks at, and which function it calls.
    """
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training


def compiling_without_cuda_graphs(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """What keeps `generate` from recording CUDA graphs where it compiles a model by itself and was not asked to.

    It does so with a static cache on a GPU. A `compile_config` of the caller's is taken as it is.

    When it fails: see what `GenerationMixin._sample` calls where `_valid_auto_compile_criteria` holds.

    Args:
        model: the model that generates.

    Returns:
        Modules, the names of attributes, and what they are to be; none where `generate` never compiles.
    """
    compiled_call = getattr(model, "get_compiled_call", None)
    if compiled_call is None:
        return

    def get_compiled_call(compile_config: Any = None) -> Any:
        if compile_config is None:
            compile_config = getattr(model, "_default_compile_config", CompileConfig)()
            if compile_config.mode == "reduce-overhead":
                compile_config = replace(compile_config, mode="default")
        return compiled_call(compile_config)

    yield model, "get_compiled_call", get_compiled_call


def revision_of(config: Any) -> str | None:
    """The commit on the hub that a model was loaded from; None where transformers keeps none, as 5.23 does.

    When it fails: find where `from_pretrained` keeps the commit, or results files hold no revision.
    """
    return cast("str | None", getattr(config, "_commit_hash", None))


# What decoding loops need of `generate`.


def takes_encoded_images(model: Any) -> bool:
    """Whether a model's forward takes `mm_encoder_outputs` in place of pixels; none does before transformers 5.23.

    When it fails: see what `GenerationMixin.generate` asks before it encodes images ahead of the prefill. Without it
    pixels are encoded again for every view.
    """
    supports = getattr(model, "_supports_mm_encoder_outputs", None)
    return bool(callable(supports) and supports())


def pad_token(config: Any) -> Tensor | None:
    """The padding token that `generate` fills finished rows with, a scalar tensor.

    When it fails: find what `GenerationMixin._prepare_special_tokens` leaves on the configuration.
    """
    return cast("Tensor | None", config._pad_token_tensor)


def end_tokens(config: Any) -> Tensor | None:
    """The tokens that end an answer, `(n,)`, or None.

    When it fails: find what `GenerationMixin._prepare_special_tokens` leaves on the configuration.
    """
    return cast("Tensor | None", config._eos_token_tensor)


@contextmanager
def keeping_processors(model: Any, processors: Sequence[Any] | None) -> Iterator[None]:
    """Gives `generate` the logits processors it was called with where a model's own `generate` drops them.

    Janus's takes `logits_processor` by name and does not hand it on when it makes text.

    When it fails: find where `GenerationMixin.generate` puts its processors together. Once no model drops them, the
    block may do nothing.

    Args:
        model: whose `generate` is called inside the block.
        processors: its `logits_processor`.
    """
    inner = cast("Any", unwrapped(model))
    kind = type(inner)
    if not processors or getattr(kind, "generate", None) is GenerationMixin.generate:
        yield
        return
    before = vars(inner).get("_get_logits_processor")
    prepare = inner._get_logits_processor

    def prepared(*args: Any, **kwargs: Any) -> Any:
        given = kwargs.pop("logits_processor", None) or LogitsProcessorList(processors)
        return prepare(*args, **kwargs, logits_processor=given)

    vars(inner)["_get_logits_processor"] = prepared
    try:
        yield
    finally:
        vars(inner).pop("_get_logits_processor")
        if before is not None:
            vars(inner)["_get_logits_processor"] = before


def prefill(model: Any, ids: Tensor, config: Any, kwargs: dict[str, Any]) -> Any:
    """The model's output for the prompt, of which a cache may hold the beginning.

    When it fails: call `prepare_inputs_for_generation(ids, is_first_iteration=True, **kwargs)`, then the model, as
    `GenerationMixin._sample` does before its first token; mind which part of `ids` a filled cache leaves.
    """
    return model._prefill(ids, config, kwargs, is_first_iteration=True)


def kwargs_after(model: Any, output: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What `generate` hands on to the model, one token longer: mask, positions, token types, cache.

    When it fails: find what `GenerationMixin._sample` does to its `model_kwargs` after each forward.
    """
    return cast("dict[str, Any]", model._update_model_kwargs_for_generation(output, kwargs))


def tuned_for_decoding(model: Any) -> AbstractContextManager[None]:
    """Lets mixtures of experts multiply in the way that suits single tokens, as `generate` does while it decodes.

    When it fails: return `contextlib.nullcontext()`; only the speed of mixtures of experts depends on it.
    """
    return cast("AbstractContextManager[None]", model._optimize_model_for_decode())


# The bookkeeping of transformers' beam search, for a search that chooses in another way.


def best_continuations(model: Any, **beams: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of all beams: log probabilities, sequences, and the beams they came from.

    When it fails: compare the arguments with those in `GenerationMixin._beam_search`, step c.
    """
    return cast("tuple[Tensor, Tensor, Tensor]", model._get_top_k_continuations(**beams))


def running_beams(model: Any, **beams: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The beams that go on: sequences, log probabilities, and the beams they came from.

    When it fails: compare the arguments with those in `GenerationMixin._beam_search`, step e.
    """
    return cast("tuple[Tensor, Tensor, Tensor]", model._get_running_beams_for_next_iteration(**beams))


def finished_beams(model: Any, **beams: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The finished answers: sequences, scores, the beams they came from, and whether they exist.

    When it fails: compare the arguments with those in `GenerationMixin._beam_search`, step f.
    """
    return cast("tuple[Tensor, Tensor, Tensor, Tensor]", model._update_finished_beams(**beams))


def may_improve(model: Any, **beams: Any) -> Tensor:
    """Whether a running beam may still beat the finished ones, `(batch, 1)`.

    When it fails: compare the arguments with those in `GenerationMixin._beam_search`, step g.
    """
    return cast(Tensor, model._check_early_stop_heuristic(**beams))


def search_goes_on(model: Any, may_improve: Tensor, is_done: Tensor, stops: Tensor, early: Any) -> bool:
    """Whether the beam search takes another step.

    When it fails: compare the arguments with those in the loop condition of `GenerationMixin._beam_search`.
    """
    return bool(model._beam_search_has_unfinished_sequences(may_improve, is_done, stops, early))
