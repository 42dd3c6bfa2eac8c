"""Decoding answers that a search found once more, one after another, so that their attention can be recorded.

Between the steps of a beam search rows change places and candidates are dropped. The attention of an answer does not
depend on that: decoded token by token it is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from lvlm_attn.decoding.forced import Forced
from lvlm_attn.decoding.options import split_options
from lvlm_attn.interventions.ended import Ended
from lvlm_attn.prompts.repeating import repeated
from lvlm_attn.prompts.request import Request
from lvlm_attn.runtime.transformers_private import keeping_processors


def setting(options: Mapping[str, Any], model: Any, name: str) -> Any:
    """What a `generate` was told: by an option, by a configuration it was given, or by the model's own."""
    for source in (options, options.get("generation_config"), getattr(model, "generation_config", None)):
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        if value is not None:
            return value
    return None


def needs_replay(options: Mapping[str, Any], model: Any) -> bool:
    """Whether rows changed places while the answer was searched for."""
    return (setting(options, model, "num_beams") or 1) > 1


def end_ids(options: Mapping[str, Any], model: Any) -> Tensor:
    """The token ids that end an answer; none, one or several."""
    found = setting(options, model, "eos_token_id")
    listed = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    return torch.as_tensor(listed, dtype=torch.long)


def answer_lengths(sequences: Tensor, prompt: int, ends: Tensor) -> Tensor:
    """`(rows,)`: how many tokens each answer has, its end token included.

    Example:
        >>> answer_lengths(torch.tensor([[5, 7, 2, 0], [5, 7, 8, 9]]), 1, torch.tensor([2])).tolist()
        [2, 3]
    """
    answers = sequences[:, prompt:]
    is_end = torch.isin(answers, ends.to(answers.device))
    first = is_end.int().argmax(1) if answers.shape[1] else answers.new_zeros(len(answers))
    return torch.where(is_end.any(1), first + 1, answers.shape[1])


def replay(ended: Ended) -> None:
    """Decodes the returned answers greedily, with every token given."""
    target, options = ended.target, ended.options
    model: Any = target.model
    inputs = dict(ended.request.inputs) if ended.request is not None else split_options(options)[0]
    sequences, prompt = ended.sequences, inputs["input_ids"].shape[1]
    ends = end_ids(options, model)
    answers = sequences[:, prompt:].clone()
    lengths = answer_lengths(sequences, prompt, ends)
    answers[torch.arange(answers.shape[1], device=answers.device) >= lengths[:, None]] = -1
    if not answers.shape[1]:
        return
    config = GenerationConfig(
        max_new_tokens=answers.shape[1],
        do_sample=False,
        num_beams=1,
        eos_token_id=ends.tolist() or None,
        pad_token_id=setting(options, model, "pad_token_id"),
    )
    deltas = getattr(target.parts.base, "rope_deltas", None)
    forced = LogitsProcessorList([Forced(answers)])
    try:
        with keeping_processors(model, forced):
            model.generate(
                **repeated(Request.of_tensors(target, inputs), len(sequences)),
                generation_config=config,
                logits_processor=forced,
            )
    finally:
        if hasattr(target.parts.base, "rope_deltas"):
            cast("Any", target.parts.base).rope_deltas = deltas
