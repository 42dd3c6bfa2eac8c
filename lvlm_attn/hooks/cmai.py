"""CMAI: masks for each text token the patches that the tokens it attends to do not attend to.

After "Reducing Image Redundancy" for large vision-language models (arXiv 2411.15453), of which only the abstract and
summaries by others were at hand. A reconstruction: everything the docstring of `CMAI` does not attribute is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention, Situation
from lvlm_attn.interventions.checks import need_flag, need_number, need_whole
from lvlm_attn.interventions.context import Layer
from lvlm_attn.interventions.layers import DEEPEST
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.kernels.visibility import ALL, Visibility


@dataclass(frozen=True)
class CMAI(Intervention):
    """Cross-modality attention inhibition, experimental.

    From the paper: the attention of text on the image is aggregated by the attention of text on text into a focus
    score, and pairs of a text token and a patch with a low score are suppressed through the mask. Reconstructed: at
    one layer, with attention averaged over heads, `F[t, n] = sum over tokens s up to t of A[t, s] * A[s, n]`, where
    `A[t, s]` are t's weights on text made to sum to 1; in all deeper layers, the text tokens after an image do not
    attend to the patches with the lowest scores. Generated tokens are treated alike, on the scores of all tokens
    before them. Newlines are never masked. Beam search is refused, because the scores of a beam's own tokens would
    have to change places with its cache.

    Args:
        layer: where scores are taken; None is the middle of the decoder.
        quantile: share of the patches before a token that is masked for it, rounded down.
        keep_min: how many of them stay unmasked at least.
        own: add the token's own attention to the patch to its score once more.

    Raises:
        LvlmAttnError: if a parameter is out of its range.

    Example:
        >>> str(CMAI(quantile=0.25))
        'cmai:quantile=0.25'
    """

    name: ClassVar[str] = "cmai"
    needs_image: ClassVar[bool] = True

    layer: int | None = None
    quantile: float = 0.5
    keep_min: int = 16
    own: bool = False

    def __post_init__(self) -> None:
        need_whole(self, "layer", 0, DEEPEST, or_none=True)
        need_number(self, "quantile", least=0, most=1)
        need_whole(self, "keep_min", 1)
        need_flag(self, "own")

    def is_neutral(self) -> bool:
        """Whether nothing is hidden."""
        return self.quantile == 0

    def fit(self, target: Target) -> Self:
        """Chooses the layer for a model.

        Raises:
            LvlmAttnError: if no layer is deeper.
        """
        layer = (target.layers - 1) // 2 if self.layer is None else self.layer
        if layer >= target.layers - 1 and not self.is_neutral():
            raise LvlmAttnError(
                f"CMAI: layer={layer} has no deeper one to act on; this model has {target.layers} decoder layers, so "
                f"choose one from 0 to {target.layers - 2}."
            )
        return dataclasses.replace(self, layer=layer)

    def layers_at(self, site: str, target: Target) -> Sequence[int]:
        """The layer where scores are taken, and those after it where they act."""
        layer = self.layer or 0
        return (layer,) if site == "readout" else range(layer + 1, target.layers)

    def refuse(self, situation: Situation) -> str | None:
        """Refuses beams."""
        if situation == Situation.BEAMS:
            return "CMAI keeps scores of generated tokens, which beams would mix up; pass num_beams=1."
        return None

    def readout(self, layer: Layer) -> Readout | None:
        """Asks for the rows of the text tokens after an image."""
        if layer.index != self.layer:
            return None
        return Readout(layer.call.text_queries(layer.layout.device), rows="mean")

    def read(self, layer: Layer, reading: Reading) -> None:
        """Scores the patches for the text tokens of this call and chooses what is masked for each."""
        layout, call, memory = layer.layout, layer.call, layer.memory
        weights, index, is_read = cast("Tensor", reading.rows)[:, 0], reading.index, reading.is_read
        device = weights.device
        first = max(call.length - weights.shape[-1], 0)
        written = call.length - first
        mean = weights[..., :written] * is_read[..., None]
        columns = layout.is_patch.any(0).nonzero().flatten().to(device)
        is_patch = layout.is_patch.to(device)[:, columns]
        on_image = mean[:, :, (columns - first).clamp(min=0)] * is_patch[:, None]
        seen = memory.get("on_image")
        table = mean.new_zeros(layout.batch, call.length, len(columns))
        if seen is not None:
            old = seen[:, : call.start]
            table[:, : old.shape[1], : old.shape[2]] = old
        place = (index + call.start)[..., None].expand(-1, -1, len(columns))
        table.scatter_add_(1, place, on_image)
        memory["on_image"] = table
        on_text = mean * layout.is_text[:, None, first:].to(device)
        on_text = on_text / on_text.sum(-1, keepdim=True).clamp(min=torch.finfo(mean.dtype).tiny)
        focus = on_text @ table[:, first:]
        if self.own:
            focus = focus + on_image
        may_attend = is_patch[:, None] & (columns <= (index + call.start)[..., None])
        is_hidden = lowest(focus, may_attend, self.quantile, self.keep_min) & is_read[..., None]
        hidden = torch.zeros(layout.batch, call.queries, len(columns), dtype=torch.bool, device=device)
        rows = index[..., None].expand_as(is_hidden)
        # Padding rows repeat others that are not asked for, and mask nothing.
        hidden.scatter_(1, rows, is_hidden)
        self._chosen(layer).append(self._made(layer, Hidden(call.start, columns, hidden)))
        counts = torch.stack((is_hidden.sum(), may_attend.sum(), is_read.sum())).double()
        layer.stats["pairs"] = layer.stats["pairs"] + counts if "pairs" in layer.stats else counts

    def visibility(self, layer: Layer) -> Visibility | None:
        """Hides the patches that were chosen in the layer of the scores."""
        chosen = self._chosen(layer)
        return chosen[-1] if chosen and layer.index != self.layer else None

    def _made(self, layer: Layer, hidden: Hidden) -> Visibility:
        batch, length = layer.layout.batch, layer.call.length
        touches = pad(hidden.pairs.any(-1), (hidden.start, 0))
        group = torch.zeros(batch, length, dtype=torch.uint8, device=touches.device)
        return Visibility(group, earlier=((ALL,),), predicate=shown(hidden), touches=touches)

    @staticmethod
    def _chosen(layer: Layer) -> list[Visibility]:
        """What the layer of the scores chose in this call; empty before it, and where no token was scored."""
        return layer.shared("chosen", list)

    def summarise(self, stats: Mapping[Any, Any]) -> list[dict[str, Any]]:
        """Tokens treated, and the share of pairs of token and patch that were masked."""
        if "pairs" not in stats:
            return []
        hidden, pairs, words = stats["pairs"].tolist()
        return [{"layer": self.layer, "words": int(words), "hidden": hidden / max(pairs, 1)}]


class Hidden(NamedTuple):
    """What the queries of a call must not attend to: `pairs` `(batch, queries, columns)` at the positions `columns`."""

    start: int
    columns: Tensor
    pairs: Tensor


def lowest(scores: Tensor, is_choice: Tensor, share: float, keep_min: int) -> Tensor:
    """True at the lowest scores of each row.

    Args:
        scores: `(..., columns)`.
        is_choice: the same shape, the columns of each row that count.
        share: how many of them, as a share, rounded down.
        keep_min: how many are left at least.

    Example:
        >>> lowest(torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([True, True, True, False]), 0.7, 1).tolist()
        [False, True, True, False]
    """
    count = is_choice.sum(-1, keepdim=True)
    taken = torch.minimum((share * count + 1e-6).floor().long(), (count - keep_min).clamp(min=0))
    order = scores.masked_fill(~is_choice, torch.inf).argsort(dim=-1, stable=True)
    rank = torch.empty_like(order)
    rank.scatter_(
        -1, order, torch.arange(scores.shape[-1], device=scores.device).expand_as(order).contiguous()
    )
    return (rank < taken) & is_choice


def shown(hidden: Hidden) -> Callable[[Tensor, Tensor], Tensor]:
    """A predicate for `Visibility`: False for pairs that are hidden."""
    start, columns, pairs = hidden
    end = int(columns[-1]) + 1 if len(columns) else 0
    slot = torch.full((end + 1,), len(columns), device=pairs.device)
    slot[columns] = torch.arange(len(columns), device=pairs.device)
    padded = pad(pairs, (0, 1))

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        row = (query - start).clamp(0, pairs.shape[1] - 1).expand(-1, -1, padded.shape[2])
        return ~padded.gather(1, row)[..., slot[key.flatten().clamp(max=end)]]

    return predicate
