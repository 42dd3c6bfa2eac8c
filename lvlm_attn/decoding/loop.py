"""Greedy decoding and sampling, with the processors, criteria and streamer that `generate` prepared.

transformers' own loop calls a model; this one asks for logits, wherever they come from. Draws, padding and outputs are
those of a plain `generate`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation import BaseStreamer, GenerateDecoderOnlyOutput, GenerationConfig

from lvlm_attn.runtime.transformers_private import pad_token, tuned_for_decoding


class NextLogits(Protocol):
    """Where the loop gets its logits from: `(rows, vocabulary)`."""

    model: Any

    def prefill(self) -> Tensor:
        """Logits after the prompts."""

    def step(self, tokens: Tensor) -> Tensor:
        """Logits after one more token of every row, `(rows,)`."""


def decode(
    source: NextLogits,
    prompt: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    streamer: BaseStreamer | None = None,
) -> Tensor | GenerateDecoderOnlyOutput:
    """Chooses tokens until every row has ended.

    Args:
        source: gives the logits.
        prompt: `(rows, length)`, what processors, criteria and the answer begin with.
        logits_processor: of `generate`; sampling's temperature, top-k and so on are among them.
        stopping_criteria: of `generate`; the maximum length is among them.
        generation_config: as `generate` completed it.
        streamer: is given the tokens of every step; `generate` has given it the prompt.

    Returns:
        `(rows, length + new tokens)`, finished rows filled with the padding token, or transformers' output object
        with `return_dict_in_generate`; its `past_key_values` is None.
    """
    config, ids = generation_config, prompt
    keeps_scores = bool(config.return_dict_in_generate and config.output_scores)
    keeps_logits = bool(config.return_dict_in_generate and config.output_logits)
    scores: tuple[Tensor, ...] = ()
    raw: tuple[Tensor, ...] = ()
    # Rows are filled only where tokens can end them, as criteria of the caller's own do not.
    has_ends = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    is_open = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    logits = _own(source.prefill(), ids.device)
    with tuned_for_decoding(source.model):
        while True:
            processed = logits_processor(ids, logits)
            scores = (*scores, processed) if keeps_scores else ()
            raw = (*raw, logits) if keeps_logits else ()
            tokens = _chosen(processed, bool(config.do_sample))
            if has_ends:
                tokens = torch.where(is_open, tokens, _padding(config, ids.device))
            ids = torch.cat((ids, tokens[:, None]), dim=1)
            is_open = is_open & ~stopping_criteria(ids, scores if keeps_scores else None)
            if streamer is not None:
                streamer.put(tokens.cpu())
            if not bool(is_open.any()):
                break
            logits = _own(source.step(tokens), ids.device)
    if streamer is not None:
        streamer.end()
    if not config.return_dict_in_generate:
        return ids
    return GenerateDecoderOnlyOutput(
        sequences=ids,
        scores=scores if keeps_scores else None,
        logits=raw if keeps_logits else None,
    )


def _own(logits: Tensor, device: torch.device) -> Tensor:
    """A copy in fp32, since processors may write into what they are given."""
    return logits.to(device=device, dtype=torch.float32, copy=True)


def _chosen(scores: Tensor, do_sample: bool) -> Tensor:
    if do_sample:
        return torch.multinomial(scores.softmax(-1), num_samples=1)[:, 0]
    return scores.argmax(-1)


def _padding(config: Any, device: torch.device) -> Tensor:
    fill = pad_token(config)
    assert fill is not None  # `generate` takes an end token where no padding token is set
    return fill.to(device)
