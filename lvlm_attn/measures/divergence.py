"""Vision-aware head divergence: how much the output of a head depends on the image.

Source: He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025
(arXiv 2412.13949), equations 4 to 7. Pure functions; `lvlm_attn.vhd` measures a model.
"""

from __future__ import annotations

from torch import Tensor


def last_heads(heads: Tensor, last: Tensor) -> Tensor:
    """Picks the head outputs at the last prompt token of each sample.

    Args:
        heads: `(batch, queries, heads, head_dim)`, of queries that begin at position 0.
        last: `(batch,)` positions.

    Returns:
        `(batch, heads, head_dim)` in fp32 (fp64 stays).
    """
    index = last.to(heads.device)[:, None, None, None].expand(-1, 1, *heads.shape[2:])
    picked = heads.detach().gather(1, index)[:, 0]
    return picked if picked.element_size() == 8 else picked.float()


def head_divergence(with_image: Tensor, without_image: Tensor, power: int = 2) -> Tensor:
    """Distance between head outputs with and without the image.

    Args:
        with_image: `(batch, heads, head_dim)`.
        without_image: `(batch, heads, head_dim)`.
        power: 2 for the squared Euclidean distance, 1 for the distance itself.

    Returns:
        `(batch, heads)`.
    """
    squared = (with_image - without_image).pow(2).sum(-1)
    return squared if power == 2 else squared.sqrt()


def suppress_outliers(divergence: Tensor, without_image: Tensor, *, guard: bool) -> Tensor:
    """Sets the divergence of heads to zero that surge when the image is taken away.

    A head surges if its divergence and the squared norm of its text-only output both exceed the mean of its
    layer by more than one standard deviation (unbiased).

    Args:
        divergence: `(batch, heads)`.
        without_image: `(batch, heads, head_dim)`, text-only outputs.
        guard: leave layers alone whose divergences have a standard deviation of at most 1.

    Returns:
        `(batch, heads)`.
    """
    if divergence.shape[1] < 2:
        return divergence
    norm = without_image.pow(2).sum(-1)
    spread = divergence.std(1, keepdim=True)
    surges = divergence > divergence.mean(1, keepdim=True) + spread
    surges &= norm > norm.mean(1, keepdim=True) + norm.std(1, keepdim=True)
    if guard:
        surges &= spread > 1
    return divergence.masked_fill(surges, 0)


def select_heads(divergence: Tensor) -> Tensor:
    """Chooses the heads above the median of their layer; of an even number, the lower middle is the median.

    Args:
        divergence: `(batch, heads)`.

    Returns:
        `(batch, heads)`, True at chosen heads; half of them if no two are equal, none if all are.
    """
    return divergence > divergence.median(1, keepdim=True).values
