"""Which options of `generate` go where, and which cannot go with a second view."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList, StopStringCriteria

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.prompts.pixels import IMAGE_KEYS
from lvlm_attn.prompts.rows import TOKEN_KEYS
from lvlm_attn.prompts.videos import VIDEO_KEYS

_INPUT_KEYS = (*TOKEN_KEYS, *IMAGE_KEYS, *VIDEO_KEYS)
_REFUSED = {
    "assistant_model": "assisted decoding",
    "negative_prompt_ids": "a negative prompt",
    "negative_prompt_attention_mask": "a negative prompt",
    "past_key_values": "a cache that is filled already",
    "inputs_embeds": "embeddings in place of token ids",
    "position_ids": "positions of one's own",
    "custom_generate": "a decoding loop of one's own",
    "synced_gpus": "synchronised devices",
    "logits_to_keep": "a choice of logits",
    "token_healing": "token healing",
}


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Takes apart what `model.generate` is called with.

    Returns:
        The model's inputs (tensors by name), and all other options.

    Raises:
        LvlmAttnError: without token ids.
    """
    inputs: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in options.items():
        name = "input_ids" if key == "inputs" else key
        is_input = name in _INPUT_KEYS or (isinstance(value, Tensor) and name not in _generate_options())
        if not is_input:
            rest[name] = value
        elif value is not None:
            inputs[name] = value
    if not isinstance(inputs.get("input_ids"), Tensor):
        raise LvlmAttnError("lvlm.generate needs input_ids, or images= and prompts=.")
    return inputs, rest


def split_model_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts options for `generate` itself from those it hands on to the model."""
    known = _generate_options()
    return (
        {key: value for key, value in options.items() if key in known},
        {key: value for key, value in options.items() if key not in known},
    )


def refuse_inputs(inputs: Mapping[str, Any], title: str) -> None:
    """Refuses model inputs that cannot be joined with those of a view.

    Raises:
        UnsupportedError: naming the input.
    """
    for key in inputs:
        if key not in _INPUT_KEYS:
            what = f"{_REFUSED[key]} ({key})" if key in _REFUSED else f"the input {key!r}"
            raise UnsupportedError(
                f"{title} decodes a second view of the prompt and cannot go with {what}; leave it out."
            )


def refuse_options(options: Mapping[str, Any], title: str) -> None:
    """Refuses options under which a second view would be decoded wrongly.

    Raises:
        UnsupportedError: naming the option.
    """
    for key, what in _REFUSED.items():
        if options.get(key) is not None and options.get(key) is not False:
            raise UnsupportedError(
                f"{title} decodes a second view of the prompt and cannot go with {what} ({key}); leave it out."
            )
    for source in (options, vars(options["generation_config"]) if options.get("generation_config") else {}):
        if source.get("cache_implementation") == "paged":
            raise UnsupportedError(
                f"{title} decodes a second view of the prompt and cannot go with continuous batching; leave out "
                f"cache_implementation='paged'."
            )


def refuse_config(config: GenerationConfig, title: str) -> None:
    """Refuses ways of decoding under which a second view would be decoded wrongly.

    Args:
        config: as `generate` has completed it.
        title: the intervention that has the view.

    Raises:
        UnsupportedError: naming the option.
    """
    found: list[tuple[str, object, str]] = []
    if (config.num_beams or 1) > 1:
        found.append(("num_beams", config.num_beams, "num_beams=1"))
    if config.prompt_lookup_num_tokens is not None:
        found.append(("prompt_lookup_num_tokens", config.prompt_lookup_num_tokens, "None"))
    if config.prefill_chunk_size is not None:
        found.append(("prefill_chunk_size", config.prefill_chunk_size, "prefill_chunk_size=None"))
    if config.guidance_scale not in (None, 1, 1.0):
        found.append(("guidance_scale", config.guidance_scale, "guidance_scale=None"))
    for key in ("token_healing", "output_attentions", "output_hidden_states", "use_mtp"):
        if getattr(config, key, None):
            found.append((key, True, f"{key}=False"))
    if not found and str(config.get_generation_mode().value) not in ("greedy_search", "sample"):
        found.append(("mode", config.get_generation_mode().value, "greedy decoding or sampling"))
    if found:
        key, value, remedy = found[0]
        remedy = f"{key}=None" if remedy == "None" else remedy
        raise UnsupportedError(
            f"{title} decodes a second view of the prompt and cannot go with {key}={value}; use {remedy}."
        )


def own_stop_strings(options: dict[str, Any], default: GenerationConfig) -> dict[str, Any]:
    """Turns stop strings into a stopping criterion.

    With a decoding loop that is not its own, `generate` loses the tokenizer that stop strings need.

    Raises:
        LvlmAttnError: if stop strings come without the tokenizer.
    """
    config = options.get("generation_config") or default
    strings = options.get("stop_strings", config.stop_strings)
    if strings is None:
        return options
    tokenizer = options.get("tokenizer")
    if tokenizer is None:
        raise LvlmAttnError("stop_strings need the tokenizer; pass tokenizer=processor.tokenizer as well.")
    criteria = StoppingCriteriaList(options.get("stopping_criteria") or [])
    criteria.append(StopStringCriteria(tokenizer, strings))
    rest = {key: value for key, value in options.items() if key not in ("stop_strings", "tokenizer")}
    if config.stop_strings is not None:
        import copy

        rest["generation_config"] = copy.deepcopy(config)
        rest["generation_config"].stop_strings = None
    return rest | {"stopping_criteria": criteria}


@lru_cache(maxsize=1)
def _generate_options() -> frozenset[str]:
    """Everything `generate` takes for itself."""
    names = set(inspect.signature(GenerationMixin.generate).parameters) | set(vars(GenerationConfig()))
    return frozenset(names - {"self", "inputs", "kwargs"} | {"tokenizer", "assistant_tokenizer"})
