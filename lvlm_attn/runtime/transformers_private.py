"""Everything that transformers does not promise to keep, reached here and nowhere else.

Each function says what to do when a new version of transformers breaks it, and
`tests/runtime/test_transformers_private.py` holds each of them.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, cast

from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lvlm_attn.errors import UnsupportedError

Attend = Callable[..., tuple[Tensor, Tensor | None]]

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


def attention_of(config: Any) -> str:
    """The name of the attention function that the layers of a configuration ask for.

    When it fails: find where `PreTrainedModel.set_attn_implementation` keeps the name now.
    """
    return str(config._attn_implementation)


def set_attention_of(config: Any, name: str) -> None:
    """Changes the attention function of one configuration, without a check and without its sub-configurations.

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


def generate_variables() -> Iterator[Mapping[str, Any]]:
    """The local variables of the `generate` calls on the stack, innermost first.

    `self`, `input_ids` (the prompt, padding and beams included) and `generation_config` are relied on.

    When it fails: find what `GenerationMixin.generate` calls the prompt just before it calls the decoding loop.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _GENERATE:
            yield frame.f_locals
        frame = frame.f_back


def revision_of(config: Any) -> str | None:
    """The commit on the hub that a model was loaded from; None where transformers keeps none, as 5.23 does.

    When it fails: find where `from_pretrained` keeps the commit, or results files hold no revision.
    """
    return cast("str | None", getattr(config, "_commit_hash", None))
