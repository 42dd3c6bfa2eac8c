"""Tokens between and beside those of an image that belong to it: breaks, tags, the marker before and behind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import Block, ImageGrid, Kind, PromptLayout
from tests.fuzzing import sized

P, T, X, F = Kind.PAD, Kind.TEXT, Kind.PATCH, Kind.FILLER
IMAGE, MARK, EDGE = 9, 7, 8
SQUARE = ImageGrid((Block(2, 2, "base"),))
PAIR = ImageGrid((Block(1, 2, "base"),))


def test_marks_between_the_tokens_of_one_image_are_its_fillers() -> None:
    ids = torch.tensor([[5, 9, 9, MARK, 9, 9, MARK, 9, 9, 5], [0, 0, 5, 9, MARK, MARK, 9, 9, 9, MARK]])
    grids = [SQUARE, PAIR, SQUARE]
    layout = PromptLayout.build(ids, IMAGE, grids, (ids != 0).long(), marks_between=True)
    assert layout.kind.tolist() == [[T, X, X, F, X, X, T, X, X, T], [P, P, T, X, F, F, X, X, X, T]]
    assert layout.image.tolist() == [[-1, 0, 0, 0, 0, 0, -1, 1, 1, -1], [-1, -1, -1, 0, 0, 0, 0, 0, 0, -1]]
    assert layout.row.tolist() == [[-1, 0, 0, -1, 1, 1, -1, 0, 0, -1], [-1, -1, -1, 0, -1, -1, 0, 1, 1, -1]]
    plain = PromptLayout.build(ids, IMAGE, grids, (ids != 0).long())
    assert plain.kind.tolist() == [[T, X, X, T, X, X, T, X, X, T], [P, P, T, X, T, T, X, X, X, T]]


def test_edges_belong_to_the_image_they_stand_beside() -> None:
    ids = torch.tensor([[5, EDGE, EDGE, EDGE, 9, 9, EDGE, 5, EDGE, 5, EDGE, 9, 9, EDGE, EDGE, 5]])
    layout = PromptLayout.build(ids, IMAGE, [PAIR, PAIR], edge_ids=(EDGE,))
    # Two edges before an image are its own, a third is not; an edge in the midst of text is text.
    assert layout.kind[0].tolist() == [T, T, F, F, X, X, F, T, T, T, F, X, X, F, F, T]
    assert layout.image[0].tolist() == [-1, -1, 0, 0, 0, 0, 0, -1, -1, -1, 1, 1, 1, 1, 1, -1]
    # Between two images an edge belongs to the one before it.
    ids = torch.tensor([[9, 9, EDGE, 9, 9, 5]])
    layout = PromptLayout.build(ids, IMAGE, [PAIR, PAIR], edge_ids=(EDGE, 100))
    assert layout.image[0].tolist() == [0, 0, 0, 1, 1, -1]
    assert layout.kind[0].tolist() == [X, X, F, X, X, T]
    # A row without an image has no fillers.
    ids = torch.tensor([[5, EDGE, 5], [9, 9, EDGE]])
    layout = PromptLayout.build(ids, IMAGE, [PAIR], edge_ids=(EDGE,))
    assert layout.kind.tolist() == [[T, T, T], [X, X, F]]


def test_edges_at_the_ends_of_a_row_are_beside_nothing() -> None:
    ids = torch.tensor([[EDGE, 5, 9, 9, 5, EDGE], [EDGE, 9, 9, 5, 5, EDGE]])
    layout = PromptLayout.build(ids, IMAGE, [PAIR, PAIR], edge_ids=(EDGE,))
    assert layout.kind.tolist() == [[T, T, X, X, T, T], [F, X, X, T, T, T]]
    assert layout.image.tolist() == [[-1, -1, 0, 0, -1, -1], [0, 0, 0, -1, -1, -1]]


images = st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=0, max_size=3)


@sized(80)
@given(st.lists(images, min_size=1, max_size=3), st.integers(0, 2), st.sampled_from(["left", "right"]))
def test_marks_equal_a_walk(rows: list[list[list[bool]]], words: int, side: str) -> None:
    """An image is a list of pairs of tokens; where an entry is True a mark stands before the pair."""
    ids, kinds, owners, grids = [], [], [], []
    for pictures in rows:
        row, kind, owner = [5], [int(T)], [-1]
        for number, pairs in enumerate(pictures):
            for place, has_mark in enumerate(pairs):
                if has_mark:
                    row, kind = [*row, MARK], [*kind, int(F if place else T)]
                    owner = [*owner, number if place else -1]
                row, kind, owner = [*row, 9, 9], [*kind, X, X], [*owner, number, number]
            row, kind, owner = row + [5] * words, kind + [T] * words, owner + [-1] * words
            grids.append(ImageGrid((Block(len(pairs), 2, "base"),)))
        ids, kinds, owners = [*ids, row], [*kinds, kind], [*owners, owner]
    length = max(map(len, ids))

    def padded(values: list[list[int]], fill: int) -> list[list[int]]:
        pads = [[fill] * (length - len(row)) for row in values]
        return [pad + row if side == "left" else row + pad for pad, row in zip(pads, values)]

    tensor = torch.tensor(padded(ids, 0))
    layout = PromptLayout.build(tensor, IMAGE, grids, (tensor != 0).long(), marks_between=True)
    assert layout.kind.tolist() == padded(kinds, int(P))
    assert layout.image.tolist() == padded(owners, -1)


def test_a_cut_tail_stays_known_when_pieces_are_joined_and_moved() -> None:
    first = PromptLayout.build(torch.tensor([[5, 9, 9]]), IMAGE, [PAIR])
    tail = PromptLayout.build(torch.tensor([[9, 9, 9]]), IMAGE, [SQUARE], may_end_inside_image=True)
    joined = first.join(tail)
    assert joined.unfinished == (3,)
    assert joined.grids == ((PAIR, SQUARE),)
    moved = joined.to("meta")
    assert (moved.unfinished, moved.grids) == (joined.unfinished, joined.grids)
    with pytest.raises(LvlmAttnError, match=r"^Cannot join to a layout .* row 0 has 3 of the 4 tokens"):
        tail.join(first)
    with pytest.raises(LvlmAttnError, match=r"^Cannot append to a layout"):
        tail.append(1)
    rest = PromptLayout.build(torch.tensor([[9, 5]]), IMAGE, [], after=joined)
    assert (rest.unfinished, rest.image[0].tolist()) == ((0,), [-1, 0, 0, 1, 1, 1, 1, -1])
