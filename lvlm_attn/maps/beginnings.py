"""What several prompts about the same images have in common, and what each goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request


def _rows(request: Request) -> list[Tensor]:
    """The token ids of each row without padding."""
    ids, mask = request.inputs["input_ids"], request.inputs.get("attention_mask")
    return list(ids) if mask is None else [row[keep != 0] for row, keep in zip(ids, mask)]


def common_beginning(requests: Sequence[Request]) -> list[int] | None:
    """How many tokens the rows of all requests have in common; None if images lie after them."""
    listed = [_rows(request) for request in requests]
    token = requests[0].layout  # checks the images once, before anything runs
    cuts = []
    for row in range(token.batch):
        variants = [rows[row] for rows in listed]
        most = min(len(ids) for ids in variants) - 1
        same = torch.stack([ids[:most] for ids in variants])
        differs = (same != same[:1]).any(0).nonzero()
        cut = int(differs[0]) if len(differs) else most
        images = (token.is_patch | token.is_filler)[row][token.is_valid[row]].nonzero()
        if cut < 1 or (len(images) and int(images[-1]) >= cut):
            return None
        cuts.append(cut)
    return cuts


def beginning(request: Request, cuts: Sequence[int]) -> dict[str, Tensor]:
    """The inputs of the first `cuts` tokens of each row with the images, padded on the left."""
    shape = request.inputs["input_ids"].shape
    mask = request.inputs.get("attention_mask")
    is_valid = torch.ones(shape, dtype=torch.bool) if mask is None else mask.bool()
    length = max(cuts)
    inputs = dict(request.inputs)
    inputs.setdefault("attention_mask", is_valid.to(request.inputs["input_ids"]))
    for key, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            rows = [row[keep][:cut] for row, keep, cut in zip(value, is_valid.to(value.device), cuts)]
            fill = _fill(request, key)
            inputs[key] = torch.stack(
                [torch.nn.functional.pad(row, (length - len(row), 0), value=fill) for row in rows]
            )
    return inputs


def endings(request: Request, cuts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The tokens after the first `cuts` of each row, padded on the right, and which are valid."""
    rows = [ids[cut:] for ids, cut in zip(_rows(request), cuts)]
    length = max(len(row) for row in rows)
    fill = _fill(request, "input_ids")
    ids = torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=fill) for row in rows])
    lengths = torch.tensor([len(row) for row in rows], device=ids.device)
    return ids, (torch.arange(length, device=ids.device) < lengths[:, None]).to(ids)


def _fill(request: Request, key: str) -> int:
    if key != "input_ids":
        return 0
    tokenizer = getattr(request.target.processor, "tokenizer", request.target.processor)
    pad = getattr(tokenizer, "pad_token_id", None)
    return int(pad) if isinstance(pad, int) else 0
