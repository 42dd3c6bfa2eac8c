"""The model families the package knows, one file each."""

from __future__ import annotations

from typing import Any

from torch import nn

from lvlm_attn.errors import LvlmAttnError, UnsupportedError, closest, shown
from lvlm_attn.families import (
    aya_vision,
    cohere2_vision,
    gemma3,
    gemma4,
    glm4v,
    glm46v,
    granite4_vision,
    idefics3,
    internvl,
    janus,
    lfm2_vl,
    llama4,
    llava,
    llava_next,
    llava_next_video,
    llava_onevision,
    mistral3,
    molmo2,
    ovis2,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    smolvlm,
    vipllava,
)
from lvlm_attn.families.family import (
    Family,
    ImageInputs,
    Parts,
    TextMask,
    find_parts,
    image_token_id,
    named_arguments,
    prompt_layout,
)
from lvlm_attn.families.fits import Fit, Rectangle
from lvlm_attn.families.llava import repeat_over_tokens
from lvlm_attn.families.versions import check_transformers
from lvlm_attn.families.videos import Videos

__all__ = [
    "Family",
    "Fit",
    "ImageInputs",
    "Parts",
    "Rectangle",
    "TextMask",
    "Videos",
    "family_of",
    "image_token_id",
    "models",
    "named_arguments",
    "parts_of",
    "prompt_layout",
    "register_family",
    "repeat_over_tokens",
]

_FAMILIES: dict[str, Family] = {
    module.FAMILY.name: module.FAMILY
    for module in (
        llava,
        llava_next,
        llava_next_video,
        llava_onevision,
        vipllava,
        internvl,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        qwen3_5,
        smolvlm,
        idefics3,
        aya_vision,
        cohere2_vision,
        ovis2,
        mistral3,
        gemma3,
        gemma4,
        paligemma,
        janus,
        glm4v,
        glm46v,
        llama4,
        lfm2_vl,
        granite4_vision,
        molmo2,
    )
}


_HOW_TO_ADD = "'Add a model family' in https://github.com/lvlm-attn/lvlm-attn/blob/main/CONTRIBUTING.md"
_Q_FORMER = (
    "its generate never calls the model: it encodes the picture, and the instruction with it, and calls generate of "
    "the text decoder on embeddings, so a wrap of the model sees neither the prompt nor its picture"
)
_UNSUITED = {
    "instructblip": _Q_FORMER,
    "instructblipvideo": _Q_FORMER,
    "blip-2": _Q_FORMER,
    "mllama": "its image tokens are not in the sequence; text attends to them in layers of their own",
}
"""Why models of a type cannot be wrapped, whatever a family says."""


def models() -> dict[str, Family]:
    """The known families by `config.model_type`.

    Example:
        >>> models()["llava"].title
        'LLaVA'
    """
    return dict(_FAMILIES)


def family_of(model: nn.Module | Any) -> Family:
    """The family of a model, by its `config.model_type`.

    Args:
        model: a transformers model, or its configuration.

    Raises:
        UnsupportedError: if the type is not known; the message says which are and how to add one, or why models of the
            type cannot be wrapped. If the installed transformers is outside the range.
    """
    check_transformers()
    config = getattr(model, "config", model)
    name = getattr(config, "model_type", None)
    if isinstance(name, str) and name in _FAMILIES:
        return _FAMILIES[name]
    if isinstance(name, str) and name in _UNSUITED:
        raise UnsupportedError(
            f"Model type {name!r} ({type(model).__name__}) cannot be wrapped: {_UNSUITED[name]}. Use a model whose "
            f"image is in the sequence, of one of the types {', '.join(sorted(_FAMILIES))}."
        )
    raise UnsupportedError(
        f"Model type {name!r} ({type(model).__name__}) is not supported.{closest(str(name), _FAMILIES)} "
        f"Supported are {', '.join(sorted(_FAMILIES))}; la.register_family adds one of your own (on the command line "
        f"--plugin FILE): {_HOW_TO_ADD} says how."
    )


def parts_of(model: nn.Module) -> Parts:
    """The language model, layers, attentions, output projections and image encoder of a model.

    Args:
        model: a `...ForConditionalGeneration` model or its inner `...Model`.

    Raises:
        UnsupportedError: if the model's type is not known.
        LvlmAttnError: if a part is not where the family keeps it.
    """
    return find_parts(model, family_of(model))


def register_family(family: Family) -> None:
    """Adds a family, so that models of its type can be wrapped.

    Raises:
        LvlmAttnError: if it is no `Family`, or its name is taken.

    Example:
        >>> import dataclasses
        >>> register_family(dataclasses.replace(models()["llava"], name="my_llava"))  # doctest: +SKIP
    """
    if not isinstance(family, Family):
        raise LvlmAttnError(
            f"register_family takes a Family, and got {shown(family)}; make one as CONTRIBUTING shows."
        )
    if family.name in _FAMILIES:
        raise LvlmAttnError(f"Model family {family.name!r} is registered already; give yours another name.")
    _FAMILIES[family.name] = family
