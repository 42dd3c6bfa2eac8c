"""What pooled prompts remember of their un-pooled patches, as turn follows turn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_attn.hooks.crosslmm.track import KeysValues


@dataclass(frozen=True)
class Patches:
    """Un-pooled patches of all images processed so far, those of a sample packed to the front.

    Attributes:
        is_real: `(batch, patches)`, False after the patches of a sample with fewer.
        position: `(batch, patches)`, where they stand in the sequence.
        features: `(batch, patches, hidden)`, embeddings, or None where only keys and values are kept.
        keys_values: by layer, keys and values `(batch, kv_heads, patches, head_dim)`; keys are rotated.
    """

    is_real: Tensor
    position: Tensor
    features: Tensor | None
    keys_values: KeysValues

    def joined(self, later: Patches) -> Patches:
        """These patches and those of a later turn, packed again."""
        is_real = torch.cat((self.is_real, later.is_real), 1)
        order = (~is_real).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(is_real.sum(1).max())]
        features = None
        if self.features is not None and later.features is not None:
            features = _repack(torch.cat((self.features, later.features), 1), order, 1)
        keys_values = {
            layer: (
                _repack(torch.cat((key, later.keys_values[layer][0]), 2), order, 2),
                _repack(torch.cat((value, later.keys_values[layer][1]), 2), order, 2),
            )
            for layer, (key, value) in self.keys_values.items()
        }
        position = torch.cat((self.position, later.position), 1)
        return Patches(is_real.gather(1, order), position.gather(1, order), features, keys_values)


def _repack(states: Tensor, order: Tensor, axis: int) -> Tensor:
    shape = [1] * states.dim()
    shape[0], shape[axis] = order.shape
    index = order.to(states.device).view(shape)
    return states.gather(axis, index.expand(*(n if i != axis else -1 for i, n in enumerate(states.shape))))
