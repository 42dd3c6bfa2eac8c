"""How the logits of two views are joined: contrast, guidance, and the cut to plausible tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lvlm_attn.interventions.context import State
from lvlm_attn.interventions.summary import add


def contrast(main: Tensor, other: Tensor, weight: float) -> Tensor:
    """`(1 + weight) * main - weight * other`.

    Source: Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual
    Contrastive Decoding" (CVPR 2024, arXiv 2311.16922), equation 3.

    Args:
        main: `(batch, vocabulary)` logits.
        other: the same of the distorted view.
        weight: strength of the contrast; 0 gives `main`.
    """
    return (1 + weight) * main - weight * other


def guide(main: Tensor, other: Tensor, gamma: float) -> Tensor:
    """`gamma * (log p - log q) + log q` for the distributions p of `main` and q of `other`.

    Source: Sanchez et al., "Stay on topic with Classifier-Free Guidance" (arXiv 2306.17806), as used by PAI
    (ECCV 2024, arXiv 2407.21771), section 3.3.

    Args:
        main: `(batch, vocabulary)` logits.
        other: the same without the condition.
        gamma: 1 gives the log-probabilities of `main`.
    """
    log_p, log_q = main.log_softmax(-1), other.log_softmax(-1)
    return gamma * (log_p - log_q) + log_q


def is_plausible(main: Tensor, beta: float) -> Tensor:
    """`(batch, vocabulary)`, True at tokens at least `beta` times as likely as the likeliest.

    Source: Li et al., "Contrastive Decoding" (ACL 2023, arXiv 2210.15097), section 3.3. Logits and
    log-probabilities give the same set.

    Args:
        main: logits.
        beta: in [0, 1]; 0 keeps every token, and the likeliest always stays.
    """
    if beta == 0:
        return torch.ones_like(main, dtype=torch.bool)
    return main >= main.amax(-1, keepdim=True) + math.log(beta)


def cut(fused: Tensor, main: Tensor, beta: float) -> Tensor:
    """`fused` with minus infinity at tokens that `main` finds implausible; see `is_plausible`."""
    return fused if beta == 0 else fused.masked_fill(~is_plausible(main, beta), -torch.inf)


def count_choices(state: State, main: Tensor, fused: Tensor) -> None:
    """Notes for the report how many likeliest tokens the joining changed; no value leaves the device.

    Tokens of rows that are finished while others go on are counted as well.
    """
    add(state.counts, "tokens", len(main))
    add(state.counts, "likeliest_changed", (main.argmax(-1) != fused.argmax(-1)).sum())
