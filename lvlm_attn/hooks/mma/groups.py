"""Which later text the rows of an image attend to, as groups of positions and a table over them: the modes of `MMA`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lvlm_attn.interventions.modality import count_after, count_before
from lvlm_attn.kernels.visibility import ALL, Table

MODES = ("to_prompt_end", "reference", "same_turn", "paper_general")


class Spans(NamedTuple):
    """What the positions of one call are, all `(batch, queries)`.

    Attributes:
        is_text: text of the prompt.
        is_image: tokens of an image.
        is_end: the last token of an answer marker.
        is_answer: tokens the caller labelled as answer.
        size: tokens of a marker.
        include_marker: whether the marker that ends what they attend to belongs to it.
    """

    is_text: Tensor
    is_image: Tensor
    is_end: Tensor
    is_answer: Tensor
    size: int
    include_marker: bool


def groups_of(mode: str, spans: Spans) -> tuple[Tensor, Table, Tensor]:
    """Groups of positions, the reach ahead between groups, and how many keys ahead each query attends to.

    A row that attends to nothing ahead is in a group without reach, so that it is computed as always.

    Example:
        >>> none = torch.zeros(1, 4, dtype=torch.bool)
        >>> image = torch.tensor([[False, True, True, False]])
        >>> group, later, opened = groups_of("to_prompt_end", Spans(~image, image, none, none, 0, True))
        >>> group.tolist(), opened.tolist()
        ([[2, 1, 1, 2]], [[0, 1, 1, 0]])
    """
    if mode == "same_turn":
        return _turns(spans)
    if mode == "reference":
        has_marker = spans.is_end.any(1, keepdim=True)
        limit = torch.where(has_marker, _cut(spans, spans.is_end.long().argmax(1, keepdim=True)), 0)
    else:
        limit = _prompt_end(spans)
    position = torch.arange(spans.is_text.shape[1], device=spans.is_text.device)
    is_open = position < torch.minimum(limit, _first_answer(spans))
    text, image = spans.is_text & is_open, spans.is_image & is_open
    text_behind = torch.where(spans.is_image, count_after(text), 0)
    if mode != "paper_general":
        group = torch.where(text_behind > 0, 1, torch.where(text, 2, 0))
        return group, ((0, 0, 0), (0, 0, ALL), (0, 0, 0)), text_behind
    image_behind = torch.where(text, count_after(image), 0)
    opened = torch.where(image, text_behind, image_behind)
    # 1 and 2: image and text that attend ahead; 3 and 4: image and text that are only attended to.
    kind = torch.where(image, 1, torch.where(text, 2, 0))
    group = torch.where((opened == 0) & (kind > 0), kind + 2, kind)
    to_text, to_image, none = (0, 0, ALL, 0, ALL), (0, ALL, 0, ALL, 0), (0, 0, 0, 0, 0)
    return group, (none, to_text, to_image, none, none), opened


def _turns(spans: Spans) -> tuple[Tensor, Table, Tensor]:
    """The text of a user's turn is attended to by the images in it; a marker ends the turn and belongs to it."""
    position = torch.arange(spans.is_text.shape[1], device=spans.is_text.device)
    is_open = position < _first_answer(spans)
    text = spans.is_text & is_open
    if not spans.include_marker:
        text = text & ~_marker_tokens(spans, spans.is_end)
    turn = count_before(spans.is_end)
    batch, count = turn.shape[0], int(turn.max()) + 1
    has_image = torch.zeros(batch, count, dtype=torch.long, device=turn.device)
    has_image = has_image.scatter_reduce(1, turn, spans.is_image.long(), "amax")
    # Turns with images are numbered anew, so that the table does not grow with the conversation.
    number = (has_image.cumsum(1) - 1).clamp(min=0).gather(1, turn)
    is_seen = has_image.gather(1, turn) > 0
    images = int(has_image.sum(1).max())
    group, opened = torch.zeros_like(turn), torch.zeros_like(turn)
    later = [[0] * (1 + 2 * images) for _ in range(1 + 2 * images)]
    for index in range(images):
        here = is_seen & (number == index)
        ahead = torch.where(spans.is_image & here, count_after(text & here), 0)
        opened = opened + ahead
        group = torch.where(ahead > 0, 1 + 2 * index, torch.where(text & here, 2 + 2 * index, group))
        later[1 + 2 * index][2 + 2 * index] = ALL
    return group, tuple(map(tuple, later)), opened


def _prompt_end(spans: Spans) -> Tensor:
    """`(batch, 1)`: where the text attended to ends: after the last marker, unless an image follows it, or nowhere."""
    count = spans.is_text.shape[1]
    closes = spans.is_end & (count_after(spans.is_image) == 0)
    last = count - 1 - closes.flip(1).long().argmax(1, keepdim=True)
    return torch.where(closes.any(1, keepdim=True), _cut(spans, last), count)


def _cut(spans: Spans, end: Tensor) -> Tensor:
    """The first position that is not attended to, given the last one of a marker."""
    return end + 1 if spans.include_marker else end + 1 - spans.size


def _first_answer(spans: Spans) -> Tensor:
    """`(batch, 1)`: the first position labelled as answer, or the number of positions."""
    first = spans.is_answer.long().argmax(1, keepdim=True)
    return torch.where(spans.is_answer.any(1, keepdim=True), first, spans.is_answer.shape[1])


def _marker_tokens(spans: Spans, is_end: Tensor) -> Tensor:
    """True at all tokens of the markers that end at `is_end`."""
    found = is_end
    for back in range(1, spans.size):
        found = found | torch.nn.functional.pad(is_end, (0, back))[:, back:]
    return found
