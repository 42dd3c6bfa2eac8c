"""Training on shortened prompts: the pooled tokens alone are in the sequence, at the positions they have in it.

Inside a wrap hidden patches stay in the sequence so that any prompt and any cache will do. Training knows its
prompts: one picture, in the same place in every row, padding on the right. So it can leave the hidden patches out,
which is where the method saves its time, and compute the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lvlm_attn.hooks.crosslmm.adapter import BRANCHES, CrossLMMAdapter
from lvlm_attn.hooks.crosslmm.pooling import block_centres, pool_block
from lvlm_attn.layout.grids import Block


def short_hidden(
    model: Any, adapter: CrossLMMAdapter, input_ids: Tensor, image_start: int, patches: Tensor
) -> tuple[Tensor, Tensor]:
    """Runs the language model of a LLaVA on a pooled prompt, with an adapter.

    Args:
        model: a LLaVA whose images are one square block of patches.
        adapter: its adapter, with `causal_images` and `t2v_rows="all_text"`.
        input_ids: `(batch, length)`, padded on the right.
        image_start: position of the first image token, in every row.
        patches: `(batch, patches, hidden)`, projected.

    Returns:
        Last hidden states `(batch, kept, hidden)`, and the positions `(kept,)` they stand at.
    """
    batch, count, _ = patches.shape
    side = round(count**0.5)
    block = Block(side, side, "base")
    stop = image_start + count
    places = torch.arange(image_start, stop, device=patches.device)
    centres = block_centres(places, block, adapter.shape.grid).sort().values
    pooled = torch.stack(
        [
            pool_block(rows.view(side, side, -1), adapter.shape.grid, adapter.shape.pool).flatten(0, 1)
            for rows in patches
        ]
    )
    words = model.get_input_embeddings()(input_ids)
    embeds = torch.cat((words[:, :image_start], pooled, words[:, stop:]), 1)
    before = torch.arange(image_start, device=patches.device)
    after = torch.arange(stop, input_ids.shape[1], device=patches.device)
    positions = torch.cat((before, centres, after))
    spans = {
        "v2v": slice(image_start, image_start + len(centres)),
        "t2v": slice(image_start + len(centres), len(positions)),
    }
    with _hosted(model.model.language_model.layers, adapter, adapter.source(patches), spans):
        # Without a mask, transformers takes a gap in the positions for the seam of two packed samples.
        hidden = model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            position_ids=positions.expand(batch, -1),
            use_cache=False,
        ).last_hidden_state
    return hidden, positions


@contextmanager
def _hosted(
    layers: Any, adapter: CrossLMMAdapter, patches: Tensor, spans: dict[str, slice]
) -> Iterator[None]:
    """Hooks the branches onto their layers; every row of a span reads every patch."""
    handles = []

    def host(index: int) -> None:
        layer = layers[index]
        entered: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[:] = [args[0] if args else kwargs["hidden_states"]]

        def add(module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> tuple[Any, ...]:
            attended = output[0]
            normed = layer.post_attention_layernorm(entered.pop() + attended)
            added = torch.zeros_like(attended)
            for name in BRANCHES:
                rows = normed[:, spans[name]]
                branch = adapter.branch(index, name)
                allowed = torch.ones(1, 1, 1, dtype=torch.bool, device=rows.device)
                allowed = allowed.expand(len(rows), rows.shape[1], patches.shape[1])
                added[:, spans[name]] = branch(rows, branch.keys_values(patches), allowed)
            return (attended + added, *output[1:])

        handles.append(layer.register_forward_pre_hook(keep, with_kwargs=True))
        handles.append(layer.self_attn.register_forward_hook(add))

    try:
        for index in adapter.shape.hosted:
            host(index)
        yield
    finally:
        for handle in handles:
            handle.remove()
