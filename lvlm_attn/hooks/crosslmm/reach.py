"""Which un-pooled patches a position may attend to.

The patches of a sample are numbered in the order of the sequence, so what a position may attend to is a run of them: a
first one and the one after the last. Padding of samples with fewer patches lies after every run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.layout.prompt import Kind, PromptLayout

SCOPES = ("global", "frame")
TEXT_ROWS = ("all_text", "post_image", "response")
BRANCHES = ("both", "v2v", "t2v")


@dataclass(frozen=True)
class Runs:
    """For every query of a call, the run of patches it may attend to; empty where `stop <= first`.

    Attributes:
        first: `(batch, queries)`, number of the first patch.
        stop: `(batch, queries)`, number of the one after the last.
    """

    first: Tensor
    stop: Tensor

    def only(self, attends: Tensor) -> Runs:
        """The same runs, empty but at the given queries."""
        return Runs(self.first, torch.where(attends, self.stop, 0))

    @property
    def attends(self) -> Tensor:
        """`(batch, queries)`, True where there is something to attend to."""
        return self.stop > self.first


def patch_rows(layout: PromptLayout) -> Rows | None:
    """Where the patches of every sample stand, packed; None without any."""
    return Rows.of(layout.is_patch) if bool(layout.has_image.any()) else None


def text_runs(
    layout: PromptLayout, start: int, queries: int, rows: str = "all_text", causal_images: bool = True
) -> Runs:
    """What text attends to: every patch before it, or with `causal_images` false every patch of the sample.

    Args:
        layout: of all positions up to the last query.
        start: position of the first query.
        queries: how many queries.
        rows: `"all_text"`, text, fillers and generated tokens; `"post_image"`, those of them that have a patch
            before them; `"response"`, the last prompt token and the generated ones.
        causal_images: whether text attends to no image that stands after it.

    Example:
        >>> grid = ImageGrid((Block(1, 2, "base"),))
        >>> layout = PromptLayout.build(torch.tensor([[5, 9, 9, 6]]), 9, [grid])
        >>> text_runs(layout, 0, 4).stop.tolist()
        [[0, 0, 0, 2]]
    """
    span = slice(start, start + queries)
    counted = layout.is_patch.cumsum(1)
    before = counted[:, span]
    attends = (layout.is_text | layout.is_filler)[:, span]
    if rows == "post_image":
        attends = attends & (before > 0)
    elif rows == "response":
        positions = torch.arange(start, start + queries, device=layout.device)
        attends = layout.is_generated[:, span] | (positions == layout.last[:, None])
    stop = before if causal_images else counted[:, -1:].expand_as(before)
    return Runs(torch.zeros_like(before), stop).only(attends)


def pooled_runs(
    layout: PromptLayout,
    is_pooled: Tensor,
    start: int,
    queries: int,
    scope: str = "global",
    causal_images: bool = True,
) -> Runs:
    """What pooled tokens attend to: patches of their own image or frame, and of other ones with scope `"global"`.

    Args:
        layout: of all positions up to the last query.
        is_pooled: `(batch, length)`, where pooled tokens stand.
        start: position of the first query.
        queries: how many queries.
        scope: `"global"` or `"frame"`.
        causal_images: whether a token of an image or frame attends to no later one.
    """
    span = slice(start, start + queries)
    unit, units = _units(layout)
    # Patches of each unit, then the number of patches up to each unit's end.
    counts = torch.zeros(layout.batch, units + 1, dtype=torch.long, device=layout.device)
    counts.scatter_add_(1, unit + 1, layout.is_patch.long()) if units else None
    ends = counts.cumsum(1)
    own = unit[:, span]
    first, stop = ends.gather(1, own), ends.gather(1, (own + 1).clamp(max=units))
    if scope == "global":
        first = torch.zeros_like(first)
        stop = stop if causal_images else ends[:, -1:].expand_as(stop)
    return Runs(first, stop).only(is_pooled[:, span] & (layout.kind[:, span] == Kind.PATCH))


def _units(layout: PromptLayout) -> tuple[Tensor, int]:
    """`(batch, length)`, the number of the image or frame of each patch, 0 elsewhere; and the most of any sample."""
    if not any(grid.is_video for row in layout.grids for grid in row):
        return layout.image.clamp(min=0), max((len(row) for row in layout.grids), default=0)
    host, most = layout.on_host, 0
    image = host.image.clamp(min=0)
    unit = torch.zeros_like(image)
    for sample, grids in enumerate(host.grids):
        is_video = torch.tensor([grid.is_video for grid in grids] or [False])
        counts = torch.tensor([len(grid.blocks) if grid.is_video else 1 for grid in grids] or [0])
        before = counts.cumsum(0) - counts
        own = image[sample]
        unit[sample] = before[own] + is_video[own] * host.block[sample]
        most = max(most, int(counts.sum()))
    return torch.where(host.is_patch, unit, 0).to(layout.device), most


def join(one: Runs, other: Runs) -> Runs:
    """Runs of two kinds of queries, of which no query is both."""
    return Runs(
        torch.where(other.attends, other.first, one.first),
        torch.where(other.attends, other.stop, one.stop),
    )
