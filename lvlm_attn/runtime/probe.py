"""Checking, before anything is installed, that a model's attention can be reached."""

from __future__ import annotations

from typing import Any, cast

import torch

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.families.devices import execution_device
from lvlm_attn.families.target import Target
from lvlm_attn.runtime.active import without_interventions
from lvlm_attn.runtime.fingerprint import structure_of
from lvlm_attn.runtime.remembered import Remembered

SEEN = Remembered(most=8)
"""The layers whose attention went through the registry, by model and what it is made of."""


def probe(target: Target) -> None:
    """Checks that every layer's attention really goes through the registry, on one token.

    A model is looked at once, and again when its modules, their settings, the names of their attention, or the
    functions of their files are others (`runtime.fingerprint`).

    Raises:
        UnsupportedError: naming the layers that do not.
    """
    model = cast("Any", target.parts.language_model)

    def one_token() -> None:
        ids = torch.zeros(1, 1, dtype=torch.long, device=execution_device(model))
        model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False)

    def seen() -> frozenset[int]:
        # As a call, not as a block: an interrupt on the way out of a block of ours would leave gradients off.
        return frozenset(torch.no_grad()(without_interventions)(one_token).seen)

    structure = structure_of(model)
    found = SEEN.found(model, structure and structure.key, seen)
    missing = sorted(set(target.parts.softmax_layers) - found)
    if missing:
        raise UnsupportedError(
            f"The attention of layers {missing} of {type(model).__name__} does not go through transformers' "
            f"attention registry, so it cannot be changed; only layers with softmax attention of a stock "
            f"transformers model can."
        )
