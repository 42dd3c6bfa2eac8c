"""A matcher without a second model: where the model itself looks for the answer, compared with a description.

This is ours and not AGLA's: the relevance is CARVE's contrast map (arXiv 2509.06461), and how far the map is from
uniform stands for the similarity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lvlm_attn.maps.contrast import GENERAL, contrast_maps
from lvlm_attn.maps.crops import smoothed
from lvlm_attn.maps.maps import Map, entropy

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request


def peakedness(values: Map) -> float:
    """How far non-negative weights are from uniform: 0 for equal weights, 1 for a single one.

    Example:
        >>> peakedness(np.array([1.0, 1.0])), peakedness(np.array([0.0, 3.0]))
        (0.0, 1.0)
    """
    return 0.0 if values.size < 2 or values.sum() <= 0 else 1.0 - entropy(values) / float(np.log(values.size))


def self_match(
    request: Request, layers: Sequence[int], general: str = GENERAL
) -> list[list[tuple[Map, float]]]:
    """Relevance and similarity of every image of every row.

    Args:
        request: the questions with their images.
        layers: the layers whose attention is read.
        general: the instruction to compare with.

    Returns:
        Per row and image: relevance `(height, width)` with NaN where the model sees nothing of the image, and
        a similarity in [0, 1].
    """
    found = []
    for row in contrast_maps(request, layers, general=general, mode="first"):
        matches = []
        for item in row:
            relevance = smoothed(item.map, (item.map.shape[1], item.map.shape[0]))
            similarity = peakedness(np.concatenate([block.ravel() for block in item.blocks]))
            matches.append((np.where(item.is_seen, relevance, np.nan), similarity))
        found.append(matches)
    return found
