"""PAINT: raises the attention to the patches that the image encoder itself attends to.

Source: "PAINT: Paying Attention to INformed Tokens to Mitigate Hallucination in Large Vision-Language Model"
(arXiv 2501.12206; its first version is "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
Vision-Language Model"), and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.encoder_patches import VisionRows, received
from lvlm_attn.families.target import Target
from lvlm_attn.families.videos import refuse_videos
from lvlm_attn.interventions.base import Situation
from lvlm_attn.interventions.checks import need_choice, need_layers, need_number
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import Layers
from lvlm_attn.interventions.presets import HasPresets, Preset, preset_field
from lvlm_attn.kernels.spec import Amplification

if TYPE_CHECKING:
    from lvlm_attn.layout.prompt import PromptLayout

LOCAL = VisionRows(0, "class")
SUMMARY = VisionRows(-2, "class")
SPATIAL = VisionRows(0, "all")


PRESETS = {
    "paper": Preset(
        {"alpha": 0.7, "beta": 0.4, "local": 0.25, "spatial": 0.0},
        "the best row of the paper's tables, as a third-party page gives them",
    ),
    "code": Preset(
        {"alpha": 0.7, "beta": 0.3, "local": 0.25, "spatial": 0.0},
        "released code: what its scripts take where the command line says nothing",
    ),
}
"""Settings by name. All are for LLaVA-1.5-7B; nothing is published for other models."""


@dataclass(frozen=True)
class PAINT(HasPresets):
    """Amplifies the scores of two sets of patches before the softmax, `s + gain * |s|`.

    Local patches are those that the class token attends to most in the first layer of the image encoder; summary
    patches are outliers of its attention in the layer before the last, the encoder's registers. Both are chosen per
    image, from the encoder's own attention, taken while it runs. A patch of both sets counts as summary. Encoders
    without a class token (SigLIP, Qwen) use the mean over all rows instead, encoders with windows the nearest layer
    without them, and merged patches or tiles the mean over what an image token is made of.

    The paper's spatial stream ranks patches by the attention they receive in the first layer, averaged over heads.
    The released code adds up rows of the softmax, which are all 1, and so ranks rounding noise; here it is the
    attention received. Chunked prefill is refused.

    The authors' captions change abruptly between alpha 0.5 and 0.7, where they become twice as long and recall falls:
    settings from there on are near degeneration.

    Args:
        alpha: gain on local patches; 0.7 in the paper's best row and in the released code.
        beta: gain on summary patches. The paper's best row has 0.4, the released code's default is 0.3.
        local: share of an image's patches that are local; 0.25 in paper and code.
        spatial: share of an image's patches that the spatial stream adds to the local ones.
        layers: decoder layers; the released code takes all but the first two.
        rows: `"last"`, the last prompt token and every generated one, as the released code does; or `"all_text"`,
            every text token after an image.
        head_cap: scale both gains in each head by its weight on the chosen patches relative to the mean over heads,
            at most this much. A reconstruction of the head modulation that the paper's first version speaks of and
            no released code holds; None leaves it out.
        preset: `"auto"`, which is `"paper"` here, or a name of `PRESETS`, for parameters that are left out.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(PAINT(alpha=0.5))
        'paint:alpha=0.5'
    """

    name: ClassVar[str] = "paint"
    needs_image: ClassVar[bool] = True

    alpha: float = 0.7
    beta: float = 0.4
    local: float = 0.25
    spatial: float = 0.0
    layers: Layers = "2:"
    rows: str = "last"
    head_cap: float | None = None
    preset: str = preset_field()

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __post_init__(self) -> None:
        self.apply_preset()
        need_number(self, "alpha", least=0)
        need_number(self, "beta", least=0)
        need_number(self, "local", least=0, most=1)
        need_number(self, "spatial", least=0, most=1)
        need_choice(self, "rows", ("last", "all_text"))
        if self.head_cap is not None:
            need_number(self, "head_cap", above=0)
        need_layers(self)

    def is_neutral(self) -> bool:
        """Whether no score is ever changed."""
        return self.alpha == 0 and self.beta == 0

    def refuse(self, situation: Situation) -> str | None:
        """Refuses a prompt in pieces, in which the last token and the images of a piece are not those of the prompt."""
        if situation == Situation.CHUNKED_PREFILL:
            return (
                "PAINT changes the last row of the prompt and so needs the prompt in one pass; pass "
                "prefill_chunk_size=None."
            )
        return None

    def vision(self, target: Target) -> tuple[VisionRows, ...]:
        """Asks for the rows of the image encoder that the sets are made from."""
        if self.is_neutral():
            return ()
        return (LOCAL, SUMMARY, SPATIAL) if self.spatial else (LOCAL, SUMMARY)

    def reweigh(self, layer: Layer) -> Amplification | None:
        """Amplifies the scores of the chosen patches."""

        def made() -> Amplification | None:
            if layer.is_prompt:
                self._choose(layer)
            return self._amplification(layer)

        return layer.shared("amplification", made)

    def _choose(self, layer: Layer) -> None:
        """Adds the patches of the images of this call to those of earlier turns."""
        layout, start = layer.layout, layer.call.start
        before = layer.memory.get("gain")
        if not bool((layout.is_patch[:, start:]).any()):
            if before is None:
                layer.memory["gain"] = torch.zeros(layout.batch, layout.length, device=layout.device)
            return
        refuse_videos(
            "PAINT", layout, "its sets are made for one image, and frames are encoded pooled or in pairs"
        )
        if layer.call.vision is None:
            raise LvlmAttnError(
                "PAINT needs the attention of the image encoder, and these images were encoded outside the wrap; pass "
                "pixel_values inside the wrap."
            )
        scores = [received(layer.call.vision, rows, layout, start) for rows in (LOCAL, SUMMARY)]
        scores.append(received(layer.call.vision, SPATIAL, layout, start) if self.spatial else scores[0])
        gain = torch.zeros(layout.batch, layout.length, device=layout.device)
        if before is not None:
            gain[:, : before.shape[1]] = before
        for row, image in new_images(layout, start):
            place = (layout.is_patch[row] & (layout.image[row] == image)).nonzero().flatten()
            local, summary, spatial = (score[row, place] for score in scores)
            is_local, is_summary = patch_sets(local, summary, spatial, self.local, self.spatial)
            gain[row, place] = self.alpha * is_local + self.beta * is_summary
            counts = torch.stack((torch.ones_like(is_local.sum()), is_local.sum(), is_summary.sum()))
            layer.stats["sets"] = layer.stats["sets"] + counts if "sets" in layer.stats else counts
        layer.memory["gain"] = gain

    def _amplification(self, layer: Layer) -> Amplification | None:
        gain, call = layer.memory["gain"], layer.call
        if self.rows == "all_text":
            is_touched = call.text_queries(gain.device)
        else:
            is_touched = last_rows(layer).to(gain.device)
        return Amplification(is_touched, gain=gain, head_cap=self.head_cap)

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Images seen, and how many patches of each are local and summary on the average."""
        if "sets" not in stats:
            return []
        images, local, summary = stats["sets"].tolist()
        return [
            {"images": images, "local_patches": local / images, "summary_patches": summary / images},
        ]


def patch_sets(
    local: Tensor, summary: Tensor, spatial: Tensor, local_share: float, spatial_share: float
) -> tuple[Tensor, Tensor]:
    """Chooses the local and the summary patches of one image; no patch is both.

    Args:
        local: `(patches,)`, weight from the class token in the first layer.
        summary: `(patches,)`, the same in the layer before the last.
        spatial: `(patches,)`, weight from all tokens in the first layer.
        local_share: share of the patches that are local.
        spatial_share: share of the patches that the spatial stream adds.

    Returns:
        Two tensors `(patches,)` of booleans. Summary patches are above the third quartile by more than 1.5 times the
        distance between the quartiles.

    Example:
        >>> weights = torch.tensor([0.1, 0.2, 0.1, 0.1, 9.0])
        >>> [item.int().tolist() for item in patch_sets(weights, weights, weights, 0.4, 0.0)]
        [[0, 1, 0, 0, 0], [0, 0, 0, 0, 1]]
    """
    quarters = torch.tensor([0.25, 0.75], dtype=summary.dtype, device=summary.device)
    first, third = torch.quantile(summary, quarters).unbind()
    is_summary = summary > third + 1.5 * (third - first)
    is_local = _top(local, local_share) | _top(spatial, spatial_share)
    return is_local & ~is_summary, is_summary


def new_images(layout: PromptLayout, start: int) -> list[tuple[int, int]]:
    """The images that begin at `start` or later, as (row, image)."""
    found = []
    for row, grids in enumerate(layout.grids):
        for image in range(len(grids)):
            where = (layout.image[row] == image).nonzero()
            if len(where) and int(where[0]) >= start:
                found.append((row, image))
    return found


def last_rows(layer: Layer) -> Tensor:
    """`(batch, queries)`: the last prompt token and every generated one, of samples with an image."""
    if not layer.is_prompt:
        return layer.call.prompt.has_image[:, None].expand(-1, layer.call.queries)
    layout, queries = layer.layout, layer.queries
    positions = torch.arange(layout.length, device=layout.device)[queries]
    is_last = positions == layout.last[:, None]
    return (is_last | layout.is_generated[:, queries]) & layout.has_image[:, None]


def _top(values: Tensor, share: float) -> Tensor:
    """True at the given share of the values, rounded down, that are largest; the earlier of equal ones."""
    count = int(share * len(values) + 1e-9)
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    chosen[values.argsort(descending=True, stable=True)[:count]] = True
    return chosen
