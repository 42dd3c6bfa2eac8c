"""Whether the mask that a model makes is the one its family says, which its methods assume."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from lvlm_attn.errors import UnsupportedError
from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import AttentionCall


def check_mask(call: Call, attention: AttentionCall, backend: str) -> None:
    """Refuses a mask that opens keys ahead in a family whose mask is causal, and backends that cannot hold one.

    Only the keys right after each query are checked: an image that attends to itself opens those. A mask given
    by the caller is the caller's business.

    Raises:
        UnsupportedError: naming the family and the remedy.
    """
    mask, geometry = attention.mask, attention.geometry
    if geometry.queries == 1 or call.has_own_mask:
        return
    family = call.target.family
    if not (isinstance(mask, Tensor) and mask.dim() == 4):
        if call.attends_ahead and backend not in ("sdpa", "eager"):
            raise UnsupportedError(
                f"Images of {family.title} attend to themselves both ways, and the attention backend {backend!r} is "
                f"given no mask that says so; load the model with attn_implementation='sdpa'."
            )
        return
    if not call.attends_ahead and attention.memo.shared((check_mask, mask), lambda: opens_ahead(attention)):
        raise UnsupportedError(
            f"The attention mask of this {family.title} model lets tokens attend to later ones, and its family "
            f"says that it is causal; register the family with the text_mask that it has."
        )


def opens_ahead(attention: AttentionCall) -> bool:
    """Whether any query that is no padding may attend to the key right after its own.

    Args:
        attention: an attention call with a dense mask.
    """
    mask, geometry = cast("Tensor", attention.mask), attention.geometry
    following = mask.diagonal(geometry.start - geometry.first_key + 1, dim1=-2, dim2=-1)
    is_open = following if mask.dtype == torch.bool else following > torch.finfo(mask.dtype).min / 2
    if geometry.is_valid is not None:
        own = geometry.is_valid[:, geometry.start : geometry.start + is_open.shape[-1]].to(is_open.device)
        is_open = is_open & own[:, None]
    return bool(is_open.any())
