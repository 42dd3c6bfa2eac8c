"""Premise 6: intermediate layers hold half-formed answers, which DoLa contrasts with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lvlm_attn.prompts.chat import encode_prompts
from lvlm_attn.toy.premises.asking import Asked, Row, batches
from lvlm_attn.toy.tokenizer import object_ids

_CAPTIONS = 24
_PROMPT = "Please describe this image in detail."


@torch.no_grad()
def measure(model: Any, processor: Any, asked: Sequence[Asked]) -> list[Row]:
    """A logit lens: every layer's output through the final norm and the output layer.

    Yes/no questions show how often each layer has the right answer; object words of the model's own captions, how often
    each layer has the word that the last one says.
    """
    answers = _answers(model, processor, asked)
    words = _words(model, processor, list({item.scene.id: item.scene for item in asked}.values())[:_CAPTIONS])
    half = [value for value in words[:-1] if 0.2 <= value <= 0.9]
    return [
        Row(
            "Depth: answers form over the layers",
            f"after layers 0 to {len(words) - 1}, object words of captions are those of the last layer in "
            f"{_listed(words)}; yes against no is right in {_listed(answers)}",
            "some layer with 20 to 90 % of the words",
            bool(half),
        )
    ]


def lens(model: Any, states: Sequence[Tensor]) -> Tensor:
    """`(layers, ..., vocabulary)` logits of every layer.

    Args:
        model: the toy.
        states: `(..., hidden)` what the model returns as hidden states; the last of them is already normed.
    """
    norm = model.model.language_model.norm
    layers = [norm(state) for state in states[1:-1]] + [states[-1]]
    logits: Tensor = model.lm_head(torch.stack(layers))
    return logits


def _answers(model: Any, processor: Any, asked: Sequence[Asked]) -> list[float]:
    yes, no = processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    said = []
    for inputs in batches(processor, [item.scene.image for item in asked], [item.text for item in asked]):
        states = model(**inputs, output_hidden_states=True).hidden_states
        logits = lens(model, [state[:, -1] for state in states])
        said.append(logits[..., yes] > logits[..., no])
    truth = torch.tensor([item.is_there for item in asked])
    found: list[float] = (torch.cat(said, 1) == truth).float().mean(1).tolist()
    return found


def _words(model: Any, processor: Any, scenes: Sequence[Any]) -> list[float]:
    """Per layer, how often its likeliest word at an object word is that word."""
    inputs = encode_prompts(processor, [scene.image for scene in scenes], [_PROMPT] * len(scenes))
    start = inputs["input_ids"].shape[1]
    tokens = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    added = torch.ones_like(tokens[:, start:])
    mask = torch.cat((inputs["attention_mask"], added), 1)
    states = model(
        input_ids=tokens,
        attention_mask=mask,
        pixel_values=inputs["pixel_values"],
        output_hidden_states=True,
    ).hidden_states
    names = object_ids(processor.tokenizer)
    is_name = torch.isin(tokens[:, start:], torch.tensor(names))
    logits = lens(model, [state[:, start - 1 : -1][is_name] for state in states])
    found: list[float] = (logits.argmax(-1) == tokens[:, start:][is_name]).float().mean(1).tolist()
    return found


def _listed(shares: Sequence[float]) -> str:
    return ", ".join(f"{value:.0%}" for value in shares)
