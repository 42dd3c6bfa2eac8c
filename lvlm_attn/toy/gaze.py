"""Where words look while the toy's language model learns: losses on attention, planted like the sinks.

In the first layer a word cannot know yet which of two pictures it is about; were objects found there, as they are if
nothing keeps words from it, those of both would be mixed up. Kept from it, the model takes long to find objects later
unless some heads are shown where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lvlm_attn.toy.data import ABSENT, Batch

#: What each kind of wrong look counts in the loss.
_LOOKS = {
    "early": 4.0,
    "astray": 1.0,
    "missed": 0.5,
    "unread": 0.3,
    "untold": 0.3,
    "unnumbered": 0.3,
    "blind": 0.3,
    "unsaid": 0.3,
}
# Heads by layer that are shown where objects are, heads that then read this from their names, and heads that tell a
# name which picture it is about.
_FINDING: Mapping[int, tuple[int, ...]] = {1: (0, 2), 2: (0, 2)}
_READING: Mapping[int, tuple[int, ...]] = {3: (1, 3)}
_TELLING: Mapping[int, tuple[int, ...]] = {0: (3,)}
# Heads that look at the object whose name a caption is about to say.
_SAYING: Mapping[int, tuple[int, ...]] = {4: (0, 3)}
# A head that reads what the caption has named by then, so that it is not named again.
_REMEMBERING: Mapping[int, tuple[int, ...]] = {3: (0,)}
_LEAST = 1e-4  # of a row's attention, kept out of the logarithm
# Head of the first layer in which patches look at the number of their picture, which stands two tokens before it.
_NUMBERS = 1
_NUMBER_BEFORE = 2


@dataclass(frozen=True)
class Look:
    """Where some words are to look, in some heads.

    Attributes:
        name: What it is called among the losses.
        heads: Heads by layer; layers that the model lacks do not count.
        rows: (words,) their conversations.
        columns: (words,) where they stand in these.
        wanted: (words, first + length) bool.
        words: How many there are in the whole batch.
    """

    name: str
    heads: Mapping[int, tuple[int, ...]]
    rows: Tensor
    columns: Tensor
    wanted: Tensor
    words: int

    def loss(self, weights: Sequence[Tensor | None]) -> Tensor:
        """What these conversations add to the batch's mean of -log of the attention that is where it is wanted."""
        parts = [self.wanted.new_zeros((), dtype=torch.float32)]
        kept = {layer: heads for layer, heads in self.heads.items() if layer < len(weights)}
        for layer, heads in kept.items():
            own = weights[layer]
            assert own is not None
            found = (own[:, list(heads)][self.rows, :, self.columns] * self.wanted[:, None]).sum(-1)
            parts.append(-found.clamp(min=_LEAST).log().mean(1).sum() / max(1, self.words * len(kept)))
        return torch.stack(parts).sum()


@dataclass(frozen=True)
class Gaze:
    """Where the words of some conversations are to look, and where not.

    Attributes:
        pictures: Positions of each picture.
        is_word: (conversations, length) bool, what is no padding.
        which: (conversations, length) which of two pictures a word is about, 0 or 1, and -1 for neither; None where
            there is one picture.
        words: How many words there are in the whole batch.
        told: How many of them are about one of two pictures.
        looks: What they are to look at.
        openings: How many openings there are in the whole batch.
    """

    pictures: Sequence[slice]
    is_word: Tensor
    which: Tensor | None
    words: int
    told: int
    looks: Sequence[Look] = ()
    openings: int = 1

    def wants(self, layer: int) -> bool:
        """Whether the weights of a layer matter."""
        return self.which is not None or layer == 0 or any(layer in look.heads for look in self.looks)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What ``losses`` gives, in its order."""
        pairs = () if self.which is None else ("astray", "unnumbered")
        return (*(look.name for look in self.looks), "early", *pairs)

    def losses(
        self, weights: Sequence[Tensor | None], opening: Tensor | None, is_free: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What each kind of wrong look costs.

        Args:
            weights: (conversations, heads, length, first + length) attention of the words, of all layers; None of
                layers that are not wanted.
            opening: (openings, heads, first, first) attention of the openings in the first layer; None with one
                picture.
            is_free: (conversations, first + length) bool, what any word may look at; None for nothing.
        """

        def bound(own: Tensor | None) -> Tensor:
            assert own is not None
            return own if is_free is None else own * ~is_free[:, None, None]

        first, *others = weights
        found = {look.name: look.loss(weights) for look in self.looks}
        found["early"] = self.early(bound(first))
        if self.which is not None:
            assert opening is not None
            found["astray"] = torch.stack([self.astray(bound(other)) for other in others]).mean()
            found["unnumbered"] = self.unnumbered(opening)
        return found

    def unnumbered(self, weights: Tensor) -> Tensor:
        """How little the patches of several pictures look at their picture's number, in one head of the first layer.

        Args:
            weights: (openings, heads, first, first) attention of the openings in the first layer.

        Returns:
            What these openings add to the batch's mean of -log of the attention that is there.
        """
        parts = [
            weights[:, _NUMBERS, picture, picture.start - _NUMBER_BEFORE]
            .clamp(min=_LEAST)
            .log()
            .mean(1)
            .sum()
            for picture in self.pictures
        ]
        return -torch.stack(parts).mean() / self.openings

    def early(self, weights: Tensor) -> Tensor:
        """How much the words of the first layer look at pictures: the mean of -log of what is left for the rest.

        Args:
            weights: (conversations, heads, length, first + length) attention of the words.
        """
        seen = weights[..., self.pictures[0].start : self.pictures[-1].stop]
        return _avoidance(seen.sum(-1), self.is_word, self.words)

    def astray(self, weights: Tensor) -> Tensor:
        """How much words about one of two pictures look at the other one; arguments as for ``early``."""
        assert self.which is not None
        first, second = (weights[..., picture].sum(-1) for picture in self.pictures)
        mass = torch.where((self.which == 0)[:, None], second, first)
        return _avoidance(mass, self.which >= 0, self.told)


def _avoidance(mass: Tensor, counts: Tensor, words: int) -> Tensor:
    """What some conversations add to the batch's mean of -log(1 - mass) over heads and the words that count.

    Args:
        mass: (conversations, heads, length).
        counts: (conversations, length) bool.
        words: How many count in the whole batch.
    """
    left = -(1 - mass).clamp(min=_LEAST).log()
    return (left * counts[:, None]).sum() / max(1, words * mass.shape[1])


def gaze_loss(
    attentions: Sequence[Tensor],
    batch: Batch,
    rows: slice,
    is_sink: Tensor,
    seen: Tensor | None,
) -> tuple[Tensor, dict[str, float]]:
    """What looking at the wrong place costs, from the attention of all layers; sinks may be looked at.

    Args:
        attentions: (rows, heads, length, length) of every layer.
        batch: The whole batch, with pictures.
        rows: Which of its rows.
        is_sink: (rows, length) bool.
        seen: As for ``answer_loss``.

    Returns:
        The rows' part of the loss, and of the other figures of ``answer_loss``.
    """
    words = slice(batch.first_word, -1)
    own, opening = [weights[:, :, words, :-1] for weights in attentions], attentions[0][:: batch.shares]
    looks = gaze_of(batch, rows, seen).losses(own, opening, is_sink[:, :-1])
    return cost(looks), figures(looks)


def cost(looks: Mapping[str, Tensor]) -> Tensor:
    """The loss from what ``Gaze.losses`` gives; 0 of nothing."""
    return sum((_LOOKS[name] * value for name, value in looks.items()), torch.zeros(()))


def figures(looks: Mapping[str, Tensor]) -> dict[str, float]:
    """The same as numbers, to be logged."""
    return {name: float(value.detach()) for name, value in looks.items()}


def gaze_of(batch: Batch, rows: slice, seen: Tensor | None) -> Gaze:
    """Where the words of some rows, without the last of each, are to look; arguments as for ``gaze_loss``."""
    first = batch.first_word
    rows = slice(*rows.indices(len(batch.input_ids))[:2])
    is_answer = (batch.labels[:, first:] != -100).flip(1).cumsum(1).flip(1)  # padding follows the last answer
    is_word = is_answer[:, 1:] > 0
    which = None if batch.which is None else batch.which[:, first:-1]
    told = 0 if which is None else int((which >= 0).sum())
    looks = _looks(batch, rows, seen)
    own = None if which is None else which[rows]
    openings = len(batch.input_ids) // batch.shares
    return Gaze(batch.pictures, is_word[rows], own, int(is_word.sum()), told, looks, openings)


def _looks(batch: Batch, rows: slice, seen: Tensor | None) -> list[Look]:
    """Names, answers and captions look at what they are about; see the heads above.

    The name of an object that is absent looks at the first token, and so does a caption that has named nothing yet.
    """
    if seen is None or batch.named is None or batch.read is None:
        return []
    first, width = batch.first_word, batch.input_ids.shape[1] - 1
    which = None if batch.which is None else batch.which[:, first:-1]
    shown = (seen, batch.shares, batch.pictures, which, width)
    row, column = torch.where(batch.named[:, first:-1] >= 0)
    asked = batch.named[:, first:-1][row, column]
    wanted = _patches_of(asked, row, column, *shown)
    wanted[:, 0] = asked == ABSENT
    looks = [
        _part("missed", _FINDING, row, column, wanted, rows),
        _at_token("unread", _READING, batch.read[:, first:-1], width, rows),
    ]
    if batch.told is not None:
        looks.append(_at_token("untold", _TELLING, batch.told[:, first:-1], width, rows))
    if batch.saying is not None:
        row, column = torch.where(batch.saying[:, first:-1] >= 0)
        said = batch.saying[:, first:-1][row, column]
        looks.append(_part("blind", _SAYING, row, column, _patches_of(said, row, column, *shown), rows))
        places = torch.arange(width)
        is_name = F.pad(batch.saying >= 0, (1, 0))[:, :width]
        wanted = is_name[row] & (places <= first + column[:, None])
        wanted[:, 0] = ~wanted.any(1)
        looks.append(_part("unsaid", _REMEMBERING, row, column, wanted, rows))
    return looks


def _patches_of(
    asked: Tensor,
    row: Tensor,
    column: Tensor,
    seen: Tensor,
    shares: int,
    pictures: Sequence[slice],
    which: Tensor | None,
    width: int,
) -> Tensor:
    """(words, width) bool, the patches of the category that each word is about, in the picture that it is about."""
    wanted = torch.zeros(len(asked), width, dtype=torch.bool)
    for number, picture in enumerate(pictures):
        is_asked = seen[row // shares, number] == asked[:, None]
        wanted[:, picture] = is_asked if which is None else is_asked & (which[row, column] == number)[:, None]
    return wanted


def _at_token(
    name: str, heads: Mapping[int, tuple[int, ...]], places: Tensor, width: int, rows: slice
) -> Look:
    """Words look at the token whose place is given for them; -1 for none."""
    row, column = torch.where(places >= 0)
    wanted = torch.zeros(len(row), width, dtype=torch.bool)
    wanted[torch.arange(len(row)), places[row, column]] = True
    return _part(name, heads, row, column, wanted, rows)


def _part(
    name: str, heads: Mapping[int, tuple[int, ...]], row: Tensor, column: Tensor, wanted: Tensor, rows: slice
) -> Look:
    """The part that some rows have in a look of the whole batch; words that have nothing to look at do not count."""
    kept = wanted.any(1)  # a few objects cover most of no patch
    row, column, wanted = row[kept], column[kept], wanted[kept]
    own = (row >= rows.start) & (row < rows.stop)
    return Look(name, heads, row[own] - rows.start, column[own], wanted[own], len(wanted))
