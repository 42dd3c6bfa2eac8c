"""Rows of tokens: padding them on the left to one length, taking tokens out, putting tokens in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError

TOKEN_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def tokens_of(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inputs that have one entry per token, `(batch, length)` each."""
    return {key: inputs[key] for key in TOKEN_KEYS if key in inputs}


def stack_rows(pieces: Sequence[Mapping[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Puts batches below one another, padded on the left to the longest.

    Args:
        pieces: `input_ids` and `attention_mask` of each batch, and what else has one entry per token.
        pad_id: what stands at padding.

    Raises:
        LvlmAttnError: if one batch has an entry per token that another lacks.
    """
    keys = pieces[0].keys()
    for piece in pieces:
        if missing := set(keys) ^ set(piece.keys()):
            raise LvlmAttnError(
                f"A view and its request differ in {sorted(missing)}; give every view what its request has."
            )
    length = max(piece["input_ids"].shape[1] for piece in pieces)
    return {
        key: torch.cat([_padded(piece[key], length, pad_id if key == "input_ids" else 0) for piece in pieces])
        for key in keys
    }


def keep_tokens(inputs: Mapping[str, Tensor], is_kept: Tensor, pad_id: int) -> dict[str, Tensor]:
    """Takes tokens out and packs the rest to the right.

    Args:
        inputs: entries per token, `attention_mask` among them.
        is_kept: `(batch, length)`.
        pad_id: what stands at padding.

    Raises:
        LvlmAttnError: if a row keeps no token.
    """
    is_kept = is_kept.to(inputs["input_ids"].device)
    counts = is_kept.sum(1)
    if int(counts.min()) == 0:
        raise LvlmAttnError(
            f"Row {int(counts.argmin())} of the prompt is all image; without its image nothing is left."
        )
    longest = int(counts.max())
    # A stable sort moves the kept positions to the right end and keeps their order.
    order = is_kept.to(torch.uint8).argsort(dim=1, stable=True)[:, -longest:]
    is_token = is_kept.gather(1, order)
    return {
        key: values.gather(1, order).masked_fill(~is_token, pad_id if key == "input_ids" else 0)
        for key, values in inputs.items()
    }


def insert_tokens(
    inputs: Mapping[str, Tensor], ids: Sequence[int], places: Sequence[int]
) -> dict[str, Tensor]:
    """Puts the same text into every row.

    Args:
        inputs: entries per token, `attention_mask` among them.
        ids: the tokens to put in.
        places: for each row, before which position.
    """
    fills: dict[str, Sequence[int]] = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    result = {}
    for key, values in inputs.items():
        piece = torch.as_tensor(fills.get(key, [0] * len(ids)), dtype=values.dtype, device=values.device)
        result[key] = torch.stack(
            [torch.cat((row[:place], piece, row[place:])) for row, place in zip(values, places)]
        )
    return result


def _padded(values: Tensor, length: int, fill: int) -> Tensor:
    return torch.nn.functional.pad(values, (length - values.shape[1], 0), value=fill)
