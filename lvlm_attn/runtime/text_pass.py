"""Running a prompt without its images: what the model makes of the text alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.runtime.active import without_interventions


def text_only(embeds: Tensor, layout: PromptLayout) -> tuple[Tensor, Tensor]:
    """Drops every image token, and packs the rest to the right.

    Args:
        embeds: `(batch, length, hidden)`.
        layout: of the same positions, or of more.

    Returns:
        Embeddings `(batch, longest text, hidden)` padded on the left, and their mask `(batch, longest text)`.

    Raises:
        LvlmAttnError: if a sample has no text at all.
    """
    length = embeds.shape[1]
    is_kept = (layout.is_text & layout.is_prompt)[:, :length]
    counts = is_kept.sum(1)
    if int(counts.min()) == 0:
        raise LvlmAttnError(
            f"Row {int(counts.argmin())} of the prompt is all image; a text-only pass needs at least one text "
            f"token."
        )
    longest = int(counts.max())
    # A stable sort moves the kept positions to the right end and keeps their order.
    order = is_kept.to(torch.uint8).argsort(dim=1, stable=True)[:, -longest:]
    mask = is_kept.gather(1, order)
    packed = embeds.gather(1, order[..., None].expand(-1, -1, embeds.shape[2]))
    return packed.masked_fill(~mask[..., None], 0), mask


def text_heads(
    target: Target, layout: PromptLayout | None, inputs: Mapping[str, Any], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Runs the language model on the text of a prompt and returns head outputs at its last token.

    The pass has no cache, counts positions afresh, and changes nothing: interventions are silent, and neither
    the cache, the random state nor what the model remembers of its last prompt is touched.

    Args:
        target: the model.
        layout: of the prompt.
        inputs: the keyword arguments of the language model: `inputs_embeds` `(batch, length, hidden)`, the
            embeddings of the prompt with image features in place, and in some models `per_layer_inputs`.
        layers: the layers whose head outputs are returned; those without softmax attention are left out.

    Returns:
        For each layer `(batch, heads, head_dim)` in fp32.
    """
    assert layout is not None
    packed, mask = text_only(inputs["inputs_embeds"].detach(), layout)
    more = {}
    if (per_layer := inputs.get("per_layer_inputs")) is not None:
        flat, _ = text_only(per_layer.detach().flatten(2), layout)
        more["per_layer_inputs"] = flat.view(*flat.shape[:2], *per_layer.shape[2:])
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    heads: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            last = args[0][:, -1]
            last = last if last.dtype == torch.float64 else last.float()
            heads[layer] = last.view(last.shape[0], target.heads, -1).clone()

        return read

    def text() -> None:
        cast("Any", target.parts.language_model)(
            inputs_embeds=packed,
            attention_mask=_mask(target, packed, mask, positions),
            position_ids=positions,
            use_cache=False,
            **more,
        )

    handles = []
    try:
        handles += [
            projection.register_forward_pre_hook(reader(layer), prepend=True)
            for layer in layers
            if (projection := target.parts.output_projections[layer]) is not None
        ]
        torch.no_grad()(without_interventions)(text)
    finally:
        for handle in handles:
            handle.remove()
    return heads


def _mask(target: Target, embeds: Tensor, is_text: Tensor, positions: Tensor) -> Any:
    """What the language model is given as its mask: padding, or all of it where a prompt attends to itself."""
    if target.family.mask_of(cast("Any", target.parts.base).config) != "bidirectional_prompt":
        return None if bool(is_text.all()) else is_text.long()
    settings = {
        "config": target.config,
        "inputs_embeds": embeds,
        "attention_mask": is_text.long(),
        "past_key_values": None,
        "position_ids": positions,
        "block_sequence_ids": torch.zeros_like(positions),
    }
    if getattr(target.config, "sliding_window", None) is None:
        return create_causal_mask(**settings)
    return {
        "full_attention": create_causal_mask(**settings),
        "sliding_attention": create_sliding_window_causal_mask(**settings),
    }
