"""Checking, before anything is installed, that a model's attention can be reached."""

from __future__ import annotations

from typing import Any, cast

import torch

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.interventions.base import Target
from lvlm_attn.interventions.call import ACTIVE, TextPass


def probe(target: Target) -> None:
    """Checks that every layer's attention really goes through the registry, on one token.

    Raises:
        UnsupportedError: naming the layers that do not.
    """
    seen = TextPass()
    token = ACTIVE.set((*ACTIVE.get(), seen))
    model = cast("Any", target.parts.language_model)
    try:
        with torch.no_grad():
            embed = model.get_input_embeddings()
            ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
            model(inputs_embeds=embed(ids), use_cache=False)
    finally:
        ACTIVE.reset(token)
    missing = sorted(set(target.parts.softmax_layers) - seen.seen)
    if missing:
        raise UnsupportedError(
            f"The attention of layers {missing} of {type(model).__name__} does not go through transformers' "
            f"attention registry, so it cannot be changed; only layers with softmax attention of a stock "
            f"transformers model can."
        )
