"""VMTC: keeps the patches the image encoder attends to and merges the others into a few.

After "Reducing Image Redundancy" for large vision-language models (arXiv 2411.15453), of which only the abstract and
summaries by others were at hand. A reconstruction: everything the docstring of `VMTC` does not attribute is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.encoder_patches import VisionRows, received
from lvlm_attn.families.target import Target
from lvlm_attn.families.videos import refuse_videos
from lvlm_attn.hooks.paint import new_images
from lvlm_attn.interventions.base import Intervention, Situation
from lvlm_attn.interventions.checks import need_softmax_everywhere, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.modality import attends_to_any
from lvlm_attn.kernels.visibility import ALL, Visibility

if TYPE_CHECKING:
    pass

IMPORTANCE = VisionRows(-2, "class")
FULL = 576
"""Patches of the image for which `keep` and `clusters` are counted."""


@dataclass(frozen=True)
class VMTC(Intervention):
    """Visual modality token compression, experimental.

    From the paper: a patch's importance is the attention of the image encoder's class token on it, important patches
    are kept, and the rest is clustered by K-means under cosine similarity and merged within each cluster by
    importance. Reconstructed: importance is taken from the layer before the last; clusters are made from the
    embeddings that enter the decoder, seeded by the farthest patches, in ten rounds, without chance; a merged patch
    stands where its most important member stood; and no query attends to a patch that was merged away. Positions stay,
    so the prompt does not get shorter: this shows what the compression does to the answers, not to the time. Newlines
    are kept.

    Args:
        keep: patches kept of an image of 576; other images keep the same share. 576 keeps all.
        clusters: patches that the rest is merged into, counted the same way.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(VMTC(keep=288))
        'vmtc:keep=288'
    """

    name: ClassVar[str] = "vmtc"
    needs_image: ClassVar[bool] = True
    conflicts: ClassVar[Mapping[str, str]] = {"crosslmm": "both put merged patches in the place of others"}

    keep: int = 144
    clusters: int = 32

    def __post_init__(self) -> None:
        need_whole(self, "keep", 0, FULL, remark="counted for an image of 576 patches")
        need_whole(self, "clusters", 0, FULL, remark="counted for an image of 576 patches")
        if self.keep + self.clusters == 0:
            raise LvlmAttnError("VMTC: keep=0 and clusters=0 leave nothing of the image; keep some patches.")

    def is_neutral(self) -> bool:
        """Whether every patch is kept."""
        return self.keep >= FULL

    def fit(self, target: Target) -> Self:
        """Refuses models with layers in which nothing can be hidden."""
        if not self.is_neutral():
            need_softmax_everywhere(self, target)
        return super().fit(target)

    def refuse(self, situation: Situation) -> str | None:
        """Refuses a prompt in pieces, which may cut an image."""
        if situation == Situation.CHUNKED_PREFILL:
            return (
                "VMTC merges whole images, so it needs the prompt in one pass; pass prefill_chunk_size=None."
            )
        return None

    def vision(self, target: Target) -> tuple[VisionRows, ...]:
        """Asks for the attention of the class token."""
        return () if self.is_neutral() else (IMPORTANCE,)

    def edit_embeds(self, context: Layer, embeds: Tensor) -> Tensor | None:
        """Puts merged patches in place and remembers which ones are gone."""
        if not context.is_prompt:
            return None
        call, memory, layout, start = context.call, context.memory, context.layout, context.call.start
        known = memory.get("gone")
        gone = torch.zeros(layout.batch, layout.length, dtype=torch.bool, device=embeds.device)
        if known is not None:
            gone[:, :start] = pad(known, (0, max(start - known.shape[1], 0)))[:, :start]
        memory["gone"] = gone
        images = new_images(layout, start)
        if not images:
            return None
        refuse_videos(
            "VMTC", layout, "its clusters are made for one image, and frames are encoded pooled or in pairs"
        )
        if call.vision is None:
            raise LvlmAttnError(
                "VMTC needs the attention of the image encoder, and these images were encoded outside the wrap; pass "
                "pixel_values inside the wrap."
            )
        importance = received(call.vision, IMPORTANCE, layout, start).to(embeds.device)
        edited = embeds.clone()
        counts = context.stats.setdefault("patches", [0, 0])
        for row, image in images:
            place = (
                (layout.is_patch[row] & (layout.image[row] == image)).nonzero().flatten().to(embeds.device)
            )
            keep, clusters = (round(count * len(place) / FULL) for count in (self.keep, self.clusters))
            merged, is_gone = compress(
                embeds[row, place - start], importance[row, place], keep, max(clusters, keep == 0)
            )
            edited[row, place - start] = merged
            gone[row, place] = is_gone
            counts[0] += len(place)
            counts[1] += int((~is_gone).sum())
        return edited

    def visibility(self, layer: Layer) -> Visibility | None:
        """Hides what was merged away from every query."""
        return layer.shared("hiding", lambda: self._hiding(layer))

    def _hiding(self, layer: Layer) -> Visibility | None:
        gone = layer.memory.get("gone")
        if gone is None:
            return None
        if "any" not in layer.memory or layer.is_prompt:
            layer.memory["any"] = bool(gone.any())
        if not layer.memory["any"]:
            return None
        gone = pad(gone, (0, max(layer.call.length - gone.shape[1], 0)))
        # Queries with nothing hidden within reach are of group 2, so that they are not computed again.
        group = torch.where(gone, 1, torch.where(attends_to_any(layer, gone), 0, 2))
        return Visibility(group, earlier=((ALL, 0, ALL), (ALL, 0, ALL), (ALL, ALL, ALL)))

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Patches seen, and how many were left."""
        if "patches" not in stats:
            return []
        seen, left = stats["patches"]
        return [{"patches": seen, "left": left}]


def compress(features: Tensor, importance: Tensor, keep: int, clusters: int) -> tuple[Tensor, Tensor]:
    """Keeps the important ones of some vectors and merges the rest.

    Args:
        features: `(patches, hidden)`.
        importance: `(patches,)`, not negative.
        keep: how many are kept.
        clusters: how many the rest is merged into, at most.

    Returns:
        `(patches, hidden)`, with merged vectors in the place of the most important member of each cluster, and
        `(patches,)`, True at the other members.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> merged, is_gone = compress(vectors, torch.tensor([2.0, 1.0, 1.0]), keep=1, clusters=1)
        >>> merged[1].tolist(), is_gone.tolist()
        ([0.0, 2.0], [False, False, True])
    """
    count = len(features)
    order = importance.argsort(descending=True, stable=True)
    rest = order[min(keep, count) :].sort().values
    is_gone = torch.zeros(count, dtype=torch.bool, device=features.device)
    is_gone[rest] = True
    if len(rest) == 0 or clusters == 0:
        return features, is_gone
    dtype = torch.promote_types(features.dtype, torch.float32)
    vectors, weight = features[rest].to(dtype), importance[rest].to(dtype)
    label = spherical_kmeans(vectors, weight, min(clusters, len(rest)))
    merged = features.clone()
    for cluster in range(int(label.max()) + 1):
        member = (label == cluster).nonzero().flatten()
        if len(member) == 0:
            continue
        total = weight[member].sum()
        share = (
            weight[member] / total if bool(total > 0) else torch.full_like(weight[member], 1 / len(member))
        )
        first = rest[member[weight[member].argmax()]]
        merged[first] = (share[:, None] * vectors[member]).sum(0).to(merged.dtype)
        is_gone[first] = False
    return merged, is_gone


def spherical_kmeans(vectors: Tensor, weight: Tensor, clusters: int, rounds: int = 10) -> Tensor:
    """Clusters vectors by the angle between them.

    The first centre is the vector of the largest weight, each further one the vector farthest from all centres.

    Args:
        vectors: `(count, hidden)`.
        weight: `(count,)`.
        clusters: how many clusters, at most `count`.
        rounds: how often centres are moved.

    Returns:
        `(count,)`, the cluster of each vector.
    """
    unit = normalize(vectors, dim=1)
    chosen = [int(weight.argmax())]
    nearest = unit @ unit[chosen[0]]
    while len(chosen) < clusters:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, unit @ unit[chosen[-1]])
    centres = unit[chosen]
    label = (unit @ centres.T).argmax(1)
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add_(0, label, unit)
        # A centre without vectors, or whose vectors cancel, stays where it is.
        moved = sums.norm(dim=1, keepdim=True) > 0
        centres = torch.where(moved, normalize(sums, dim=1), centres)
        new = (unit @ centres.T).argmax(1)
        if torch.equal(new, label):
            break
        label = new
    return label
