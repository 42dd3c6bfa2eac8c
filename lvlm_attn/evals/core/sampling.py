"""Sampling that a batch cannot change: every row draws from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor
from transformers import LogitsProcessor

from lvlm_attn.errors import UnsupportedError


def folded(seed: int) -> int:
    """Any whole number as one that generators take; from 0 to 2**63 - 1 it is the number itself.

    Example:
        >>> folded(7), 0 <= folded(-1) < 2**63, folded(-1) == folded(-1)
        (7, True, True)
    """
    if 0 <= seed < 2**63:
        return seed
    return int.from_bytes(sha256(hex(seed).encode()).digest()[:7], "big")


class SeededSampler(LogitsProcessor):  # type: ignore[misc]
    """Turns greedy decoding into sampling by adding Gumbel noise, drawn per row, to the logits.

    The largest of ``logits / temperature + Gumbel noise`` is a draw from ``softmax(logits / temperature)``
    (Gumbel 1954; Maddison et al. 2014), so a row's sample depends on its logits and its seed, and neither on
    the rows beside it nor on their number.

    Args:
        seeds: one per row.
        temperature: above 0.
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0) -> None:
        self._generators = [torch.Generator().manual_seed(folded(seed)) for seed in seeds]
        self._temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Adds noise to ``(rows, vocabulary)`` scores."""
        rows, size = scores.shape
        if rows != len(self._generators):
            raise UnsupportedError(
                f"sampling got {rows} rows for {len(self._generators)} seeds; use greedy decoding with this method."
            )
        noise = torch.stack(
            [-torch.empty(size).exponential_(generator=item).log() for item in self._generators]
        )
        return scores.float() / self._temperature + noise.to(scores.device)
