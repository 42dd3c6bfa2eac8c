"""Attention sinks: which dimensions of the residual stream mark them, and which tokens they are.

Sources: Kang et al. (arXiv 2503.03321), section 3, for the sink score; Sun et al., "Massive Activations in Large
Language Models" (arXiv 2402.17762), for why a few fixed dimensions are enough.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from lvlm_attn.families.devices import execution_device
from lvlm_attn.interventions.presets import Published
from lvlm_attn.runtime.active import without_interventions
from lvlm_attn.runtime.fingerprint import arithmetic, digest, structure_of, weights_of
from lvlm_attn.runtime.remembered import Remembered

if TYPE_CHECKING:
    from lvlm_attn.families.target import Target

KNOWN = (
    Published(
        "LLaVA-1.5-7B, LLaVA-NeXT-7B (Vicuna-7B)",
        {"sink_dims": (1415, 2533)},
        "VAR's paper and released code, for LLaMA-2-7B",
        ("llama", 4096, 32, 32),
    ),
    Published(
        "LLaVA-1.5-13B, LLaVA-NeXT-13B (Vicuna-13B)",
        {"sink_dims": (2100, 4743)},
        "VAR's released code, for LLaMA-2-13B",
        ("llama", 5120, 40, 40),
    ),
    Published(
        "Qwen2-VL-7B",
        {"sink_dims": (458, 2570)},
        "reported for VAR; two independent ports agree",
        ("qwen2_vl_text", 3584, 28, 4),
    ),
    Published(
        "Qwen2.5-VL-7B",
        {"sink_dims": (458, 2570)},
        "two independent ports agree",
        ("qwen2_5_vl_text", 3584, 28, 4),
    ),
)
"""Base models whose dimensions a source gives; those of all others, LLaVA-OneVision-7B among them, are measured.
The key is model type, hidden size, layers and key-value heads of the text configuration."""

FOUND = Remembered(most=8)
"""The scores of first tokens by model: its modules, its weights, and the texts."""

_PROMPTS = (
    "The quick brown fox jumps over the lazy dog. It was a bright cold day.",
    "USER: What is in the picture? ASSISTANT: There is a table, and a cup stands on it.",
    "Please describe this image in detail.",
    "Summer is warm, winter is cold, and most people like one of them better.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10. Now count backwards, please.",
    "Is there a person in the image? Answer the question using a single word or phrase.",
    "In the beginning there was nothing at all, and then there was light.",
    "A man walks down the street with his dog; a car passes by.",
)


@dataclass(frozen=True)
class SinkDims:
    """Dimensions of massive activations in a model.

    Attributes:
        dims: the dimensions, ascending.
        scores: for each, the median over layers and prompts of |x_d| / RMS(x) at the first token.
        is_confident: False if none stands out; `dims` are then merely the largest.
        source: `"known"` for a table entry, `"measured"` otherwise.
    """

    dims: tuple[int, ...]
    scores: tuple[float, ...]
    is_confident: bool
    source: str

    def __str__(self) -> str:
        listed = ", ".join(f"{dim} (sink score {score:.1f})" for dim, score in zip(self.dims, self.scores))
        if self.source == "known":
            return f"sink dimensions {', '.join(map(str, self.dims))} (known for this base model)"
        remark = "" if self.is_confident else "; none stands out, these are the largest"
        return f"sink dimensions {listed}{remark}"


def sink_score(hidden: Tensor, dims: Sequence[int]) -> Tensor:
    """How much a token looks like a sink: its largest activation in the given dimensions over its RMS.

    Args:
        hidden: `(batch, tokens, hidden)`, the residual stream that enters a layer.
        dims: the dimensions.

    Returns:
        `(batch, tokens)` in fp32 (fp64 stays), between 0 and the square root of the hidden size.
    """
    hidden = hidden.detach()
    hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
    rms = hidden.pow(2).mean(-1).add(1e-6).sqrt()
    # Picked one by one: indices would have to be copied to the device, which waits for it.
    return torch.stack([hidden[..., dim] for dim in dims], -1).abs().amax(-1) / rms


def known_sink_dims(config: Any) -> tuple[int, ...] | None:
    """The sink dimensions that are known for the base model of a text configuration, or None."""
    heads = getattr(config, "num_attention_heads", 0)
    key = (
        str(getattr(config, "model_type", "")),
        int(getattr(config, "hidden_size", 0)),
        int(getattr(config, "num_hidden_layers", 0)),
        int(getattr(config, "num_key_value_heads", None) or heads),
    )
    return next((known.settings["sink_dims"] for known in KNOWN if known.key == key), None)


def find_sink_dims(target: Target, *, most: int = 3) -> SinkDims:
    """Measures the sink dimensions of a model on a few texts.

    The first token of a text is a sink in every language model that has them, so the dimensions whose
    activation there stands out, in nearly all middle layers and for all texts, are the ones. No images are
    needed, since sinks are a property of the language model. A model is measured once, and again when its modules or
    weights have changed (`runtime.fingerprint`).

    Args:
        target: the model. With a processor its tokenizer encodes the texts; without one, fixed token ids are used.
        most: at most this many dimensions.

    Returns:
        Never empty: if no dimension stands out, the two largest, marked as not confident.
    """
    prompts = _prompt_ids(target)
    scores = FOUND.found(
        target.parts.language_model, _key(target, prompts), lambda: _first_token_scores(target, prompts)
    )  # (layers * prompts, hidden)
    median = scores.median(0).values
    size = target.hidden_size
    floor = 20.0 if size > 400 else 0.3 * math.sqrt(size)
    order = median.argsort(descending=True)
    chosen: list[int] = []
    for dim in cast("list[int]", order[: most + 1].tolist()):
        value = float(median[dim])
        if value < floor or float((scores[:, dim] >= floor).double().mean()) < 0.8 or len(chosen) == most:
            break
        if chosen and float(median[chosen[-1]]) >= 3 * value:
            break
        chosen.append(dim)
    is_confident = bool(chosen)
    dims = tuple(sorted(chosen or cast("list[int]", order[:2].tolist())))
    return SinkDims(dims, tuple(float(median[dim]) for dim in dims), is_confident, "measured")


def _key(target: Target, prompts: Sequence[Tensor]) -> Hashable | None:
    """All that the scores depend on; None where that cannot be told."""
    model = target.parts.language_model
    structure, weights = structure_of(model), weights_of(model)
    if structure is None or structure.is_training or weights is None:
        return None
    told, sampled = weights
    return structure.key, told, digest([*sampled, *prompts]), arithmetic(execution_device(model))


def _first_token_scores(target: Target, texts: Sequence[Tensor]) -> Tensor:
    """`(middle layers * prompts, hidden)`: |x| / RMS(x) of the first token as it enters each middle layer."""
    count = target.layers
    first, last = min(max(2, math.ceil(0.15 * count)), count - 1), max(math.floor(0.85 * count), 1)
    middle = range(first, max(last, first + 1))
    found: list[Tensor] = []

    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"])[0, 0].detach().double()
        found.append((hidden.abs() / hidden.pow(2).mean().add(1e-6).sqrt()).cpu())

    model = cast("Any", target.parts.language_model)
    embed, device = model.get_input_embeddings(), execution_device(model)

    def prompts() -> None:
        for ids in texts:
            model(inputs_embeds=embed(ids.to(device)[None]), use_cache=False)

    handles = []
    try:
        handles += [
            target.parts.layers[layer].register_forward_pre_hook(read, with_kwargs=True, prepend=True)
            for layer in middle
        ]
        torch.no_grad()(without_interventions)(prompts)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def _prompt_ids(target: Target) -> Sequence[Tensor]:
    tokenizer = getattr(target.processor, "tokenizer", target.processor)
    if tokenizer is not None:
        ids = [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long) for text in _PROMPTS]
        if all(len(item) for item in ids):
            return ids
    config = target.config
    size = int(config.vocab_size)
    begin = getattr(config, "bos_token_id", None)
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(min(10, size - 1), size, (16,), generator=generator) for _ in _PROMPTS]
    for item in ids:
        if isinstance(begin, int) and 0 <= begin < size:
            item[0] = begin
    return ids
