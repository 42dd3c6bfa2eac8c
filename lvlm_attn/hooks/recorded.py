"""From what a recorder kept to `AttentionMaps`: texts, pictures, the ends of answers, what else acted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from lvlm_attn._version import __version__
from lvlm_attn.families.target import Target
from lvlm_attn.hooks.replay import answer_lengths, end_ids
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.interventions.context import State, extended
from lvlm_attn.interventions.ended import Ended
from lvlm_attn.layout.grids import Kind
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.attention_maps import AttentionMaps
from lvlm_attn.maps.layer_key import LayerKey
from lvlm_attn.maps.live import Live
from lvlm_attn.maps.onto_image import MapImage
from lvlm_attn.maps.recording import Log
from lvlm_attn.maps.views import VAR_TAU
from lvlm_attn.maps.words import token_texts
from lvlm_attn.wrapping import written_form

if TYPE_CHECKING:
    from lvlm_attn.hooks.record import Record


def maps_of(item: Record, state: State, ended: Ended | None) -> AttentionMaps:
    """The maps of a prompt.

    Args:
        item: the recorder.
        state: what it holds.
        ended: the `generate` that has returned, or None for plain calls of the model.
    """
    log: Log = state.memory["log"]
    target, request, beside = state.memory["call"]
    whole = log.assembled()
    ids = torch.cat([piece for _, piece in log.ids], 1).cpu()
    keys = slice(0, log.length)
    layout = extended(cast("PromptLayout", log.prompt), log.length).to("cpu").select(range(len(ids)))
    # A view with a longer prompt pushes the rows that were asked for to the right.
    offset = 0 if request is None else log.prompt_length - request.inputs["input_ids"].shape[1]
    offset = max(offset, 0) if ended is not None and ended.request is not None else 0
    rows, targets = whole.rows, whole.targets
    if ended is not None:
        ids = ended.sequences.cpu()
        keys, layout, rows, targets = _shifted(layout, rows, targets, offset, ids.shape[1])
        prompt = log.prompt_length - offset
        lengths = answer_lengths(ids, prompt, end_ids(ended.options, target.model))
        rows, targets, layout = _ended(rows, targets, layout, prompt + lengths)
    targets = torch.where(targets < ids.shape[1], targets, rows)
    is_new = (rows < 0) & (whole.rows >= 0)
    weights = cast("dict[LayerKey, Tensor]", whole.weights)
    if bool(is_new.any()):
        for value in weights.values():
            value.masked_fill_(is_new[:, None, :, None], 0.0)
    kept = (rows >= 0).any(0)
    if not bool(kept.all()):
        whole.keep(kept)
        rows, targets = rows[:, kept], targets[:, kept]
    weights = {layer: value[..., keys] for layer, value in weights.items()}
    tokenizer = getattr(target.processor, "tokenizer", target.processor)
    inputs = request.inputs if request is not None else _tensors(ended)
    reads_more = any(other.overrides("extra_keys") for other in beside)
    return AttentionMaps(
        rows=rows,
        weights=weights,
        layout=layout,
        ids=ids,
        targets=targets,
        pieces=None if tokenizer is None else _pieces(ids, layout, tokenizer),
        images=_images(layout, request, target),
        heads=_named_heads(item, target),
        extra=_extra(weights, rows) if reads_more else {},
        sink_scores={
            layer: _fit(value[:, offset:].cpu(), layout.length) for layer, value in log.sinks.items()
        },
        meta=_meta(item, target, request, beside, ids, log.prompt_length - offset, layout),
        live=None if inputs is None else Live.of(target, inputs, tuple(beside)),
    )


def _shifted(
    layout: PromptLayout, rows: Tensor, targets: Tensor, offset: int, length: int
) -> tuple[slice, PromptLayout, Tensor, Tensor]:
    """Leaves out the first positions and those past the returned sequence, and rows about tokens past it.

    Returns:
        Which keys stay; and the layout, rows and targets by their new positions.
    """
    keys = min(layout.length - offset, length)
    is_gone = (targets - offset >= length) | (rows < 0)
    rows, targets = (rows - offset).masked_fill(is_gone, -1), (targets - offset).masked_fill(is_gone, -1)
    if offset:
        kind, image, block, row, col = (tensor[:, offset:] for tensor in layout.tensors)
        layout = PromptLayout(kind, image, block, row, col, layout.grids, layout.unfinished)
    return slice(offset, offset + keys), layout.crop(keys), rows, targets


def _ended(
    rows: Tensor, targets: Tensor, layout: PromptLayout, stops: Tensor
) -> tuple[Tensor, Tensor, PromptLayout]:
    """Leaves out what came after the end of each answer."""
    stops = stops.to(rows.device)[:, None]
    is_past = targets >= stops
    kind = layout.kind.masked_fill(torch.arange(layout.length) >= stops, int(Kind.PAD))
    changed = replace(layout, kind=kind)
    return rows.masked_fill(is_past, -1), targets.masked_fill(is_past, -1), changed


def _pieces(ids: Tensor, layout: PromptLayout, tokenizer: Any) -> tuple[tuple[str, ...], ...]:
    """The text of every position, run by run; none at images and padding."""
    found = []
    for row in range(len(ids)):
        is_text = layout.is_text[row].tolist()
        # Whether the last token, which was never processed, belongs to the answer: not where padding came before it.
        missing = ids.shape[1] - len(is_text)
        is_text += [bool(is_text and layout.is_valid[row, -1])] * missing
        texts = [""] * len(is_text)
        start: int | None = None
        for place, here in enumerate([*is_text, False]):
            if here and start is None:
                start = place
            if not here and start is not None:
                texts[start:place] = token_texts(ids[row, start:place].tolist(), tokenizer)
                start = None
        found.append(tuple(texts))
    return tuple(found)


def _images(layout: PromptLayout, request: Any, target: Target) -> tuple[tuple[MapImage, ...], ...]:
    config = cast("Any", target.parts.base).config
    known: Sequence[Sequence[Any]] | None = None if request is None else request.images
    found = []
    for row, grids in enumerate(layout.grids):
        pictures = None if known is None else known[row * len(known) // layout.batch]
        if pictures is not None and len(pictures) != len(grids):  # a processor cut crops out of them
            pictures = None
        found.append(
            tuple(
                MapImage.of(grid, None if pictures is None else pictures[number], config, target.processor)
                for number, grid in enumerate(grids)
            )
        )
    return tuple(found)


def _named_heads(item: Record, target: Target) -> tuple[int, ...]:
    if item.reduce in ("heads", "all"):
        return ()
    return tuple(range(target.heads)) if item.heads is None else tuple(cast("Sequence[int]", item.heads))


def _extra(weights: dict[LayerKey, Tensor], rows: Tensor) -> dict[LayerKey, Tensor]:
    """By layer `(batch, heads, rows)`: what is missing of 1, which lies on keys outside the sequence."""
    is_row = (rows >= 0)[:, None]
    return {
        layer: (1 - value.sum(-1)).clamp(min=0).masked_fill(~is_row, 0.0) for layer, value in weights.items()
    }


def _fit(scores: Tensor, length: int) -> Tensor:
    """Scores of the prompt's positions, with 0 after them."""
    return torch.nn.functional.pad(scores[:, :length], (0, max(length - scores.shape[1], 0)))


def _tensors(ended: Ended | None) -> dict[str, Tensor] | None:
    if ended is None:
        return None
    options = {("input_ids" if key == "inputs" else key): value for key, value in ended.options.items()}
    found = {key: value for key, value in options.items() if isinstance(value, Tensor)}
    return found if "input_ids" in found else None


def _meta(
    item: Record,
    target: Target,
    request: Any,
    beside: Sequence[Intervention],
    ids: Tensor,
    prompt: int,
    layout: PromptLayout,
) -> dict[str, Any]:
    tokenizer = getattr(target.processor, "tokenizer", target.processor)
    answers = None
    if tokenizer is not None:
        is_kept = torch.nn.functional.pad(layout.is_valid, (0, ids.shape[1] - layout.length), value=True)
        answers = [
            str(tokenizer.decode(row[prompt:][keep[prompt:]], skip_special_tokens=True)).strip()
            for row, keep in zip(ids, is_kept)
        ]
    size = math.sqrt(target.hidden_size)
    return {
        "model": f"{target.family.title}, {target.layers} layers of {target.heads} heads",
        "layers": target.layers,
        "interventions": [written_form(other) for other in beside],
        "prompts": None if request is None or request.questions is None else list(request.questions),
        "answers": answers,
        "rows": item.rows if isinstance(item.rows, str) else list(item.rows),
        "reduce": item.reduce,
        "sink_tau": VAR_TAU if size >= VAR_TAU else 0.3125 * size,
        "lvlm_attn": __version__,
    }
