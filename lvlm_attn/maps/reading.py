"""Reads how much attention a prompt's answer pays to every patch of its images, without building attention maps.

Several prompts about the same images share the pass over everything up to the end of the images: its keys and
values are kept, and only what differs is read again. With one step asked for, the model is left as soon as the
last layer of interest has attended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from lvlm_attn.families.target import Target
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import Layer
from lvlm_attn.kernels.readouts import Reading, Readout
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.beginnings import beginning, common_beginning, endings
from lvlm_attn.maps.maps import Map

if TYPE_CHECKING:
    from lvlm_attn.prompts.request import Request

Blocks = list[Map]
"""Per block of one image, the attention `(steps, layers, rows, cols)`."""


def read_attention(
    requests: Sequence[Request], layers: Sequence[int], steps: int = 1, share: bool = True
) -> list[list[list[Blocks]]]:
    """Reads the attention on image patches of the positions that the first answer tokens are predicted from.

    Step 1 is the last token of the prompt; step t is the greedily chosen token t - 1. A row ends with the step
    that predicts the end of the sequence. Weights are averaged over heads in fp32 and not normalised again.

    Args:
        requests: prompts about the same images, row by row.
        layers: the layers to read.
        steps: the most steps per row.
        share: read the common beginning of the prompts once. Prompts whose images are not all in it, and models on
            which interventions are active, whose prompt attends to itself both ways, or that have layers without
            softmax attention, are read in full each.

    Returns:
        Per request, row and image: per block `(steps, layers, rows, cols)`. Rows without images have none.

    Example:
        >>> asked, described = read_attention([question, general], layers=[20, 21])  # doctest: +SKIP
        >>> asked[0][0][0].shape  # doctest: +SKIP
        (1, 2, 24, 24)
    """
    from lvlm_attn.wrapping import wrap

    target = requests[0].target
    log = _Log(max(layers) if steps == 1 else None)
    with torch.no_grad(), _kept_positions(target) as seen:
        cuts = common_beginning(requests) if share and _can_share(target) else None
        with wrap(cast("Any", target.model), _Recorder(tuple(sorted(layers)), log), no_image="pass"):
            reader = _Reader(target, log, seen)
            found = []
            if cuts is not None:
                reader.open(beginning(requests[0], cuts))
                kept = reader.state()
            for request in requests:
                if cuts is None:
                    logits = reader.open(request.inputs, read_last=True)
                else:
                    reader.restore(kept)
                    logits = reader.go_on(*endings(request, cuts))
                found.append(reader.collect(logits, steps))
    return found


@dataclass(eq=False)
class _Log:
    """What a pass is to read, and what it has read.

    Attributes:
        stop_after: the layer after whose attention the model is left, or None to run it whole.
        is_read: `(batch, queries)`, one True per row, or None where nothing is read.
        layout: of the prompt of the last rows read.
        rows: per layer `(batch, positions)`.
    """

    stop_after: int | None
    is_read: Tensor | None = None
    layout: PromptLayout | None = None
    rows: dict[int, Tensor] = field(default_factory=dict)


class _Enough(Exception):
    """Leaves the model once everything that was asked for has been read."""


class _Recorder(Intervention):
    """Averages over heads the weights of the rows that the log asks for."""

    def __init__(self, layers: tuple[int, ...], log: _Log):
        self.layers = layers
        self.log = log

    def readout(self, layer: Layer) -> Readout | None:
        """The mean over heads of the rows asked for."""
        if self.log.is_read is None and layer.index == self.log.stop_after:
            raise _Enough
        return None if self.log.is_read is None else Readout(self.log.is_read, rows="mean")

    def read(self, layer: Layer, reading: Reading) -> None:
        """Keeps their weights."""
        values = cast("Tensor", reading.rows)[:, 0, 0]
        missing = layer.call.length - values.shape[1]
        self.log.rows[layer.index] = torch.nn.functional.pad(values, (max(missing, 0), 0)).double().cpu()
        self.log.layout = layer.layout
        if layer.index == self.log.stop_after:
            raise _Enough


class _Reader:
    """A prompt that is read bit by bit, with its cache."""

    def __init__(self, target: Target, log: _Log, seen: dict[str, Tensor | None]):
        self.target = target
        self.log = log
        self.seen = seen
        self.cache = self._empty_cache()
        self.mask = torch.empty(0)
        self.next = torch.empty(0)

    def open(self, inputs: Mapping[str, Tensor], read_last: bool = False) -> Tensor | None:
        """Reads the beginning of a prompt with its images; returns logits of the last position, if any."""
        self.cache = self._empty_cache()
        mask = inputs.get("attention_mask")
        self.mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
        last = self.mask.cumsum(1).argmax(1)
        self.log.is_read = _one_hot(last, self.mask.shape[1]) if read_last else None
        given: dict[str, Any] = {**inputs, "attention_mask": self.mask}
        plain = (self.mask.cumsum(1) - 1).clamp(min=0)
        if not hasattr(self.target.parts.base, "rope_deltas"):
            given["position_ids"] = plain
        output = self._run(given)
        positions = self.seen["position_ids"]
        axes = plain if positions is None else positions.to(plain.device)
        axes = axes.expand(*axes.shape[:-2], *self.mask.shape)
        self.next = axes.masked_fill(self.mask == 0, -1).reshape(-1, *self.mask.shape).amax((0, 2)) + 1
        return None if output is None else _at(output, last)

    def go_on(self, ids: Tensor, is_valid: Tensor) -> Tensor | None:
        """Reads further tokens, padded on the right, and their last row; returns the logits there."""
        self.mask = torch.cat((self.mask, is_valid.to(self.mask)), 1)
        last = is_valid.sum(1) - 1
        self.log.is_read = _one_hot(last, ids.shape[1])
        positions = self.next[:, None] + torch.arange(ids.shape[1], device=ids.device)
        self.next = self.next + is_valid.sum(1)
        if hasattr(self.target.parts.base, "rope_deltas"):
            positions = positions.expand(3, -1, -1)
        output = self._run({"input_ids": ids, "attention_mask": self.mask, "position_ids": positions})
        return None if output is None else _at(output, last)

    def collect(self, logits: Tensor | None, steps: int) -> list[list[Blocks]]:
        """Decodes greedily from here and gathers the rows of every step."""
        batch = self.mask.shape[0]
        places = _places(cast("PromptLayout", self.log.layout))
        taken: list[list[Tensor]] = [[] for _ in range(batch)]
        ends, banned = (_ids(self.target.model, key) for key in ("eos_token_id", "suppress_tokens"))
        is_done = torch.zeros(batch, dtype=torch.bool, device=self.mask.device)
        for step in range(steps):
            rows = torch.stack([self.log.rows[layer] for layer in sorted(self.log.rows)])
            for row in (~is_done).nonzero().flatten().tolist():
                taken[row].append(rows[:, row])
            if logits is None or step + 1 == steps:
                break
            token = logits.index_fill(-1, banned.to(logits.device), -torch.inf).argmax(-1)
            is_done |= torch.isin(token, ends.to(token.device))
            if bool(is_done.all()):
                break
            logits = self.go_on(token[:, None], torch.ones_like(token[:, None]))
        return [
            _per_image(torch.stack([_cut(rows, taken[row]) for rows in taken[row]]), places[row])
            for row in range(batch)
        ]

    def _empty_cache(self) -> DynamicCache:
        """One that grows in every layer; layers without softmax attention keep a state of their own kind."""
        return DynamicCache(config=self.target.config) if self.target.skipped_layers else DynamicCache()

    def state(self) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
        """What has been read so far; later reading replaces tensors and never writes into them."""
        return [dict(vars(layer)) for layer in self.cache.layers], self.mask, self.next

    def restore(self, state: tuple[list[dict[str, Any]], Tensor, Tensor]) -> None:
        """Goes back to an earlier state."""
        layers, self.mask, self.next = state
        del self.cache.layers[len(layers) :]
        for layer, kept in zip(self.cache.layers, layers):
            vars(layer).update(kept)

    def _run(self, given: dict[str, Any]) -> Tensor | None:
        self.log.rows.clear()
        self.seen["position_ids"] = None
        try:
            output = cast("Any", self.target.model)(**given, past_key_values=self.cache, use_cache=True)
        except _Enough:
            return None
        return cast("Tensor | None", getattr(output, "logits", None))


@contextmanager
def _kept_positions(target: Target) -> Iterator[dict[str, Tensor | None]]:
    """Notes the positions the language model gets, and puts back what the model itself keeps of them."""
    seen: dict[str, Tensor | None] = {"position_ids": None}

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        positions = kwargs.get("position_ids")
        seen["position_ids"] = positions if isinstance(positions, Tensor) else None

    base: Any = target.parts.base
    deltas = getattr(base, "rope_deltas", None)
    handle = target.parts.language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
        if hasattr(base, "rope_deltas"):
            base.rope_deltas = deltas


def _can_share(target: Target) -> bool:
    """Whether a prompt may be read in pieces, and its beginning be gone back to."""
    mask = target.family.mask_of(cast("Any", target.parts.base).config)
    return mask != "bidirectional_prompt" and not target.skipped_layers and _is_bare(target)


def _is_bare(target: Target) -> bool:
    """Whether nothing acts inside the model, so that a prompt may be read in pieces."""
    from lvlm_attn.interventions.sites import ATTENTION_SITES, LAYER_SITES
    from lvlm_attn.wrapping import sessions_on

    sites = (*ATTENTION_SITES, *LAYER_SITES, "edit_embeds", "begin")
    return not any(
        item.overrides(site)
        for session in sessions_on(target)
        if not session.modes.current.is_silent
        for item in session.interventions
        for site in sites
    )


def _places(layout: PromptLayout) -> list[list[list[tuple[Tensor, int, int]]]]:
    """Per row, image and block: the positions of its patches, and its rows and columns."""
    layout = layout.to("cpu")
    found = []
    for row, grids in enumerate(layout.grids):
        images = []
        for image, grid in enumerate(grids):
            is_own = layout.is_patch[row] & (layout.image[row] == image)
            images.append(
                [
                    ((is_own & (layout.block[row] == block)).nonzero().flatten(), item.rows, item.cols)
                    for block, item in enumerate(grid.blocks)
                ]
            )
        found.append(images)
    return found


def _cut(rows: Tensor, all_steps: Sequence[Tensor]) -> Tensor:
    """`(layers, positions)` of one step, as long as the shortest of all steps: the prompt."""
    return rows[:, : min(item.shape[1] for item in all_steps)]


def _per_image(values: Tensor, images: list[list[tuple[Tensor, int, int]]]) -> list[Blocks]:
    """Splits `(steps, layers, positions)` into images and blocks."""
    return [
        [values[..., places].reshape(*values.shape[:2], rows, cols).numpy() for places, rows, cols in blocks]
        for blocks in images
    ]


def _one_hot(index: Tensor, length: int) -> Tensor:
    return torch.arange(length, device=index.device) == index[:, None]


def _at(logits: Tensor, index: Tensor) -> Tensor:
    """`(batch, vocabulary)` logits at one position per row."""
    return logits[torch.arange(len(logits), device=logits.device), index.to(logits.device)]


def _ids(model: Any, key: str) -> Tensor:
    """Token ids that the generation configuration names under `key`: none, one or several."""
    found = getattr(getattr(model, "generation_config", None), key, None)
    listed = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
    return torch.tensor([int(item) for item in listed], dtype=torch.long)


def scaled_layers(first: int, last: int, count: int, of: int = 32) -> tuple[int, ...]:
    """Layers `first..last` of a model of `of` layers, scaled to one of `count`; at least one.

    Example:
        >>> scaled_layers(20, 25, 32), scaled_layers(20, 25, 6)
        ((20, 21, 22, 23, 24, 25), (4,))
    """
    low = min(round(first * count / of), count - 1)
    high = max(low + 1, round((last + 1) * count / of))
    return tuple(range(low, min(high, count)))
