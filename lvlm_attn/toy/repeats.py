"""A loss on captions that name an object again in place of another one.

It is the unlikelihood of Welleck et al. (arXiv 1908.04319), of names only, and only where another name is due.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_attn.toy.data import Batch

_LEAST = 1e-4  # of the probability that is left for other words, kept out of the logarithm


def again_loss(logits: Tensor, batch: Batch, rows: slice, names: Tensor) -> Tensor:
    """How likely captions repeat a name where they are to say a new one.

    Args:
        logits: (answers, vocabulary) before every answer token of the rows.
        batch: The whole batch, whose questions name no object.
        rows: Which of its rows.
        names: (categories,) token id of each object.

    Returns:
        What these rows add to the batch's mean of -log(1 - p), p being the probability of all names said before, over
        the places of new names that follow others.
    """
    assert batch.saying is not None
    saying = batch.saying[:, :-1]
    answers = batch.input_ids[:, :-1].clone()
    answers[:, : batch.first_word] = -1
    said = (answers[..., None] == names).cumsum(1) > 0
    is_due = F.one_hot(saying.clamp(min=0), len(names)).bool()
    is_new = (saying >= 0) & said.any(-1) & ~(is_due & said).any(-1)
    count = max(1, int(is_new.sum()))
    is_answer = batch.labels[rows, 1:] != -100
    kept = is_new[rows][is_answer]
    shares = torch.softmax(logits[kept], -1)[:, names] * said[rows][is_answer][kept]
    return -(1 - shares.sum(-1)).clamp(min=_LEAST).log().sum() / count
