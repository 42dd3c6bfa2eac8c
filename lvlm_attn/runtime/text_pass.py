"""Reading a prompt without its images: what the text alone makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

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
    target: Target, layout: PromptLayout | None, embeds: Tensor, layers: Sequence[int]
) -> dict[int, Tensor]:
    """Runs the language model on the text of a prompt and reads head outputs at its last token.

    The pass has no cache, counts positions afresh, and changes nothing: interventions are silent, and neither
    the cache, the random state nor what the model remembers of its last prompt is touched.

    Args:
        target: the model.
        layout: of the prompt.
        embeds: `(batch, length, hidden)`, the embeddings of the prompt with image features in place.
        layers: the layers to read.

    Returns:
        For each layer `(batch, heads, head_dim)` in fp32.
    """
    assert layout is not None
    packed, mask = text_only(embeds.detach(), layout)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    heads: dict[int, Tensor] = {}

    def reader(layer: int) -> Any:
        def read(module: nn.Module, args: tuple[Any, ...]) -> None:
            last = args[0][:, -1]
            last = last if last.dtype == torch.float64 else last.float()
            heads[layer] = last.view(last.shape[0], target.heads, -1).clone()

        return read

    handles = []
    try:
        handles += [
            target.parts.output_projections[layer].register_forward_pre_hook(reader(layer), prepend=True)
            for layer in layers
        ]
        with without_interventions(), torch.no_grad():
            cast("Any", target.parts.language_model)(
                inputs_embeds=packed,
                attention_mask=None if bool(mask.all()) else mask.long(),
                position_ids=positions,
                use_cache=False,
            )
    finally:
        for handle in handles:
            handle.remove()
    return heads
