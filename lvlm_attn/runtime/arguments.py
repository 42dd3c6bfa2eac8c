"""What the arguments of a forward call say: the residual stream, padding, and whether the mask is the caller's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor


def entering_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The residual stream a layer was called with."""
    return cast(Tensor, args[0] if args else kwargs["hidden_states"])


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a layer with another residual stream."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def has_dense_mask(given: Mapping[str, Any]) -> bool:
    """Whether the caller gave an attention mask of queries by keys."""
    mask = given.get("attention_mask")
    return isinstance(mask, Tensor) and mask.dim() == 4


def padding_mask(
    given: Mapping[str, Any], kwargs: dict[str, Any], length: int, start: int = 0
) -> Tensor | None:
    """`(batch, length)` mask of the positions from `start` on, nonzero where valid, or None.

    Where `generate` has already made the dense mask of a static cache, a position is valid if it may attend to
    itself.
    """
    mask = given.get("attention_mask")
    if mask is None:
        mask = kwargs.get("attention_mask")
    if isinstance(mask, Mapping):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if not isinstance(mask, Tensor):
        return None
    if mask.dim() == 4:
        diagonal = mask[:, 0, :, start:].diagonal(dim1=-2, dim2=-1)[:, :length]
        return diagonal if diagonal.dtype == torch.bool else diagonal == 0
    return mask[:, start : start + length]
