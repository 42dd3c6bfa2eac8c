"""Layouts against a walk over the tokens, one by one, and against layouts written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import Block, ImageGrid, Kind, PromptLayout
from tests.fuzzing import sized

P, T, X, F, G = Kind.PAD, Kind.TEXT, Kind.PATCH, Kind.FILLER, Kind.GENERATED
IMAGE = 9
SQUARE = ImageGrid((Block(2, 2, "base"),))
ANYRES = ImageGrid((Block(1, 2, "base"), Block(2, 1, "tiles", newline=True)))
CLASS_FIRST = ImageGrid((Block(1, 2, "base"),), leading_fillers=1, trailing_fillers=1)

FIELDS = ("kind", "image", "block", "row", "col")


def same(a: PromptLayout, b: PromptLayout) -> bool:
    return (
        all(torch.equal(getattr(a, name), getattr(b, name)) for name in FIELDS)
        and a.grids == b.grids
        and a.unfinished == b.unfinished
    )


def walk(ids: list[int], mask: list[int], grids: list[ImageGrid]) -> list[tuple[int, ...]]:
    """Kind, image, block, row and column of each position of one row, counted out token by token."""
    places: list[tuple[int, ...]] = []
    for image, grid in enumerate(grids):
        places += [(F, image, -1, -1, -1)] * grid.leading_fillers
        for number, block in enumerate(grid.blocks):
            for row in range(block.rows):
                for col in range(block.cols):
                    places.append((X, image, number, row, col))
                if block.newline:
                    places.append((F, image, -1, -1, -1))
        places += [(F, image, -1, -1, -1)] * grid.trailing_fillers
    result: list[tuple[int, ...]] = []
    for token, valid in zip(ids, mask):
        place = places.pop(0) if token == IMAGE else (T, -1, -1, -1, -1)
        result.append(place if valid else (P, -1, -1, -1, -1))
    assert not places
    return result


class TestByHand:
    def test_two_kinds_of_image_in_a_batch_with_both_paddings(self) -> None:
        ids = torch.tensor(
            [
                [5, 9, 9, 9, 9, 6, 9, 9, 9, 9, 9, 9, 7],
                [0, 0, 0, 0, 0, 5, 9, 9, 9, 9, 9, 9, 8],
                [5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ]
        )
        layout = PromptLayout.build(ids, IMAGE, [SQUARE, ANYRES, ANYRES], (ids != 0).long())
        assert layout.kind.tolist() == [
            [T, X, X, X, X, T, X, X, X, F, X, F, T],
            [P, P, P, P, P, T, X, X, X, F, X, F, T],
            [T, T, T, T, P, P, P, P, P, P, P, P, P],
        ]
        assert layout.image[0].tolist() == [-1, 0, 0, 0, 0, -1, 1, 1, 1, 1, 1, 1, -1]
        assert layout.image[1].tolist() == [-1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, -1]
        assert layout.block[0].tolist() == [-1, 0, 0, 0, 0, -1, 0, 0, 1, -1, 1, -1, -1]
        assert layout.row[0].tolist() == [-1, 0, 0, 1, 1, -1, 0, 0, 0, -1, 1, -1, -1]
        assert layout.col[0].tolist() == [-1, 0, 1, 0, 1, -1, 0, 1, 0, -1, 0, -1, -1]
        assert layout.grids == ((SQUARE, ANYRES), (ANYRES,), ())
        assert layout.has_image.tolist() == [True, True, False]
        assert layout.last.tolist() == [12, 12, 3]
        assert layout.after_image[0].nonzero().flatten().tolist() == [5, 12]
        assert layout.after_image[1].nonzero().flatten().tolist() == [12]
        assert not layout.after_image[2].any()

    def test_class_token_and_single_newline_are_fillers(self) -> None:
        layout = PromptLayout.build(torch.tensor([[1, 9, 9, 9, 9, 2]]), IMAGE, [CLASS_FIRST])
        assert layout.kind.tolist() == [[T, F, X, X, F, T]]
        assert layout.image.tolist() == [[-1, 0, 0, 0, 0, -1]]

    def test_masks_split_all_positions(self) -> None:
        ids = torch.tensor([[0, 5, 9, 9, 9, 9, 9, 9, 7]])
        layout = PromptLayout.build(ids, IMAGE, [ANYRES], (ids != 0).long()).append(2)
        parts = [layout.is_pad, layout.is_text, layout.is_patch, layout.is_filler]
        assert torch.stack(parts).sum(0).eq(1).all()
        assert torch.equal(layout.is_valid, ~layout.is_pad)
        assert torch.equal(layout.is_prompt, layout.is_valid & ~layout.is_generated)
        assert layout.is_generated.sum() == 2

    def test_masked_image_tokens_are_padding(self) -> None:
        ids = torch.tensor([[5, 9, 9, 9, 9, 7]])
        layout = PromptLayout.build(ids, IMAGE, [SQUARE], torch.tensor([[1, 0, 0, 1, 1, 1]]))
        assert layout.kind.tolist() == [[T, P, P, X, X, T]]
        assert layout.row.tolist() == [[-1, -1, -1, 1, 1, -1]]
        assert layout.image.tolist() == [[-1, -1, -1, 0, 0, -1]]

    def test_mask_longer_than_ids_counts_from_its_end(self) -> None:
        mask = torch.tensor([[0, 0, 0, 1, 1]])
        layout = PromptLayout.build(torch.tensor([[0, 5, 6]]), IMAGE, [], mask)
        assert layout.kind.tolist() == [[P, T, T]]

    def test_piece_without_tokens_changes_nothing(self) -> None:
        ids, mask = torch.tensor([[0, 5]]), torch.tensor([[0, 1]])
        layout = PromptLayout.build(ids, IMAGE, [], mask)
        assert same(PromptLayout.build(ids[:, :0], IMAGE, [], mask, after=layout), layout)

    def test_row_of_padding_has_no_last_position(self) -> None:
        layout = PromptLayout.build(torch.tensor([[0, 0]]), IMAGE, [], torch.tensor([[0, 0]]))
        assert layout.last.tolist() == [-1]

    def test_counts(self) -> None:
        assert (SQUARE.tokens, SQUARE.patches) == (4, 4)
        assert (ANYRES.tokens, ANYRES.patches) == (6, 4)
        assert (CLASS_FIRST.tokens, CLASS_FIRST.patches) == (4, 2)
        assert str(ANYRES) == "base 1x2 + tiles 2x1 with newlines"
        assert str(CLASS_FIRST) == "1 leading filler + base 1x2 + 1 trailing filler"


class TestGrowing:
    ids = torch.tensor([[5, 9, 9, 9, 9, 7], [0, 0, 0, 5, 6, 7]])
    mask = (ids != 0).long()

    def layout(self) -> PromptLayout:
        return PromptLayout.build(self.ids, IMAGE, [SQUARE], self.mask)

    def test_append_adds_generated_tokens_and_padding(self) -> None:
        longer = self.layout().append(2, is_valid=torch.tensor([[True, True], [True, False]]))
        assert longer.kind[:, -2:].tolist() == [[G, G], [G, P]]
        assert longer.after_image.tolist() == [[False] * 5 + [True] * 3, [False] * 8]
        assert longer.last.tolist() == [5, 5]
        assert longer.grids == self.layout().grids
        assert torch.stack(longer.tensors[1:])[:, :, -2:].eq(-1).all()
        assert same(self.layout().append(2, is_valid=torch.tensor([[1, 1], [1, 0]])), longer)

    def test_append_leaves_the_first_layout_as_it_was(self) -> None:
        layout = self.layout()
        layout.append(3)
        assert layout.length == 6

    def test_append_of_prompt_text_moves_last(self) -> None:
        assert self.layout().append(1, kind=Kind.TEXT).last.tolist() == [6, 6]

    @pytest.mark.parametrize("kind", [Kind.PATCH, Kind.FILLER])
    def test_append_refuses_images(self, kind: Kind) -> None:
        with pytest.raises(LvlmAttnError, match=f"not {kind.name}; use build"):
            self.layout().append(1, kind=kind)

    def test_append_refuses_a_validity_of_another_shape(self) -> None:
        with pytest.raises(LvlmAttnError, match=r"shape \(2, 3\).*needs \(2, 2\)"):
            self.layout().append(2, is_valid=torch.ones(2, 3, dtype=torch.bool))

    def test_join_lets_image_indices_go_on(self) -> None:
        joined = self.layout().join(PromptLayout.build(self.ids.flip(0), IMAGE, [SQUARE], self.mask.flip(0)))
        assert joined.image[0].tolist() == [-1, 0, 0, 0, 0, -1] + [-1] * 6
        assert joined.image[1].tolist() == [-1] * 6 + [-1, 0, 0, 0, 0, -1]
        twice = self.layout().join(self.layout())
        assert twice.image[0].tolist() == [-1, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, -1]
        assert twice.grids == ((SQUARE, SQUARE), ())

    def test_join_equals_build_of_the_whole(self) -> None:
        whole = PromptLayout.build(
            torch.cat((self.ids, self.ids), 1), IMAGE, [SQUARE, SQUARE], torch.cat((self.mask, self.mask), 1)
        )
        assert same(self.layout().join(self.layout()), whole)

    def test_join_refuses_other_rows(self) -> None:
        with pytest.raises(LvlmAttnError, match="1 rows to one of 2 rows"):
            self.layout().join(self.layout().select([0]))

    def test_build_after_refuses_other_rows(self) -> None:
        with pytest.raises(LvlmAttnError, match="holds 1 rows and input_ids 2"):
            PromptLayout.build(self.ids, IMAGE, [SQUARE], after=self.layout().select([0]))

    def test_repeat_lays_beams_side_by_side(self) -> None:
        beams = self.layout().repeat(3)
        for name in FIELDS:
            assert torch.equal(getattr(beams, name), getattr(self.layout(), name).repeat_interleave(3, 0))
        assert beams.grids == ((SQUARE,),) * 3 + ((),) * 3

    def test_select_takes_indices_and_booleans(self) -> None:
        assert same(self.layout().select([1, 0]).select(torch.tensor([1, 0])), self.layout())
        assert self.layout().select(torch.tensor([False, True])).grids == ((),)

    def test_crop_drops_generated_tokens_again(self) -> None:
        assert same(self.layout().append(3).crop(-3), self.layout())
        assert same(self.layout().append(3).crop(6), self.layout())
        assert same(self.layout().crop(100), self.layout())

    def test_crop_into_an_image_leaves_it_unfinished(self) -> None:
        cut = self.layout().crop(3)
        assert cut.unfinished == (2, 0)
        with pytest.raises(LvlmAttnError, match="row 0 has 2 of the 4 tokens"):
            cut.append(1)
        with pytest.raises(LvlmAttnError, match="row 0 has 2 of the 4 tokens"):
            cut.join(self.layout())
        again = PromptLayout.build(self.ids[:, 3:], IMAGE, [], self.mask[:, 3:], after=cut)
        assert same(again, self.layout())

    def test_crop_before_an_image_forgets_it(self) -> None:
        assert self.layout().crop(1).grids == ((), ())
        for nothing in (self.layout().crop(0), self.layout().crop(-6), self.layout().crop(-100)):
            assert (nothing.length, nothing.grids, nothing.unfinished) == (0, ((), ()), (0, 0))

    def test_crop_into_a_later_image_keeps_the_first(self) -> None:
        ids = torch.tensor([[5, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9], [6, 9, 9, 9, 9, 9, 9, 7, 7, 7, 7]])
        layout = PromptLayout.build(ids, IMAGE, [SQUARE, ANYRES, ANYRES])
        for length, second, cut in ((11, True, 0), (10, True, 5), (6, True, 1), (5, False, 0)):
            kept = layout.crop(length)
            assert kept.grids == ((SQUARE, ANYRES) if second else (SQUARE,), (ANYRES,))
            assert kept.unfinished == (cut, 0 if length > 6 else length - 1)

    def test_no_image_is_cut_where_nothing_is_said(self) -> None:
        layout = self.layout()
        assert PromptLayout(*layout.tensors, layout.grids).unfinished == (0, 0)

    def test_text_after_a_single_patch_is_after_an_image(self) -> None:
        dot = ImageGrid((Block(1, 1, "base"),))
        layout = PromptLayout.build(torch.tensor([[5, 9, 6, 7]]), IMAGE, [dot])
        assert layout.after_image.tolist() == [[False, False, True, True]]

    def test_what_was_laid_out_on_the_host_stays_known_there(self) -> None:
        layout = PromptLayout.build(torch.tensor([[5, 9, 9, 9, 9, 6]]), IMAGE, [SQUARE])
        assert layout.on_host is layout
        moved = layout.to("meta")  # nothing could be read there
        assert moved.device.type == "meta"
        assert (moved.grids, moved.unfinished) == (layout.grids, layout.unfinished)
        assert moved.on_host is layout
        assert moved.to("meta") is moved

    def test_to_keeps_a_layout_that_is_there(self) -> None:
        layout = self.layout()
        assert layout.to("cpu") is layout
        assert layout.to("meta").kind.device.type == "meta"


class TestMismatch:
    def test_more_tokens_than_images(self) -> None:
        ids = torch.tensor([[1, 9, 9, 9, 9], [9, 9, 9, 9, 2]])
        with pytest.raises(
            LvlmAttnError, match=r"Row 1 .* has 4 image tokens, 4 more .*1 given.*same processor"
        ):
            PromptLayout.build(ids, IMAGE, [SQUARE])

    def test_fewer_tokens_than_the_grid_takes(self) -> None:
        ids = torch.tensor([[9, 9, 9, 9, 2], [1, 9, 9, 9, 2]])
        with pytest.raises(
            LvlmAttnError, match=r"Row 1 .* image 0 .* takes 4 \(base 2x2\) and only 3 are left"
        ):
            PromptLayout.build(ids, IMAGE, [SQUARE, SQUARE])

    def test_images_without_tokens(self) -> None:
        with pytest.raises(LvlmAttnError, match=r"2 images were given.*only 1 of them"):
            PromptLayout.build(torch.tensor([[9, 9, 9, 9]]), IMAGE, [SQUARE, SQUARE])

    def test_image_in_another_row_than_its_grid(self) -> None:
        ids = torch.tensor([[1, 9, 9, 9, 9, 2, 2], [9, 9, 9, 9, 9, 9, 2]])
        with pytest.raises(LvlmAttnError, match="Row 0"):
            PromptLayout.build(ids, IMAGE, [ANYRES, SQUARE])

    def test_shapes(self) -> None:
        with pytest.raises(LvlmAttnError, match=r"shape \(4,\)"):
            PromptLayout.build(torch.tensor([1, 2, 3, 4]), IMAGE, [])
        with pytest.raises(LvlmAttnError, match=r"shape \(1, 1, 2, 2\).*\(1, 2\)"):
            PromptLayout.build(torch.tensor([[1, 2]]), IMAGE, [], torch.ones(1, 1, 2, 2))
        with pytest.raises(LvlmAttnError, match="covers 1 positions and input_ids 2"):
            PromptLayout.build(torch.tensor([[1, 2]]), IMAGE, [], torch.ones(1, 1))

    def test_chunk_that_breaks_an_image_off(self) -> None:
        first = torch.tensor([[5, 9, 9, 9]])
        cut = PromptLayout.build(first, IMAGE, [SQUARE], may_end_inside_image=True)
        assert cut.unfinished == (3,)
        with pytest.raises(LvlmAttnError, match="ends inside an image: 3 of its 4 tokens"):
            PromptLayout.build(torch.tensor([[7, 8]]), IMAGE, [], after=cut)
        with pytest.raises(LvlmAttnError, match="goes on with text after 3 of the 4 tokens"):
            PromptLayout.build(torch.tensor([[7, 8]]), IMAGE, [], after=cut, may_end_inside_image=True)
        with pytest.raises(LvlmAttnError, match="goes on with text after 3 of the 4 tokens"):
            PromptLayout.build(torch.tensor([[9, 9, 9, 7]]), IMAGE, [SQUARE], may_end_inside_image=True)

    def test_a_row_with_a_whole_image_may_go_on_beside_a_cut_one(self) -> None:
        ids = torch.tensor([[9, 9, 9, 9, 5], [5, 6, 9, 9, 9]])
        layout = PromptLayout.build(ids, IMAGE, [SQUARE, SQUARE], may_end_inside_image=True)
        assert layout.unfinished == (0, 3)

    def test_one_row_that_breaks_an_image_off_is_enough(self) -> None:
        ids = torch.tensor([[5, 6, 7], [9, 9, 7]])
        with pytest.raises(
            LvlmAttnError, match="Row 1 of the prompt goes on with text after 2 of the 4 tokens"
        ):
            PromptLayout.build(ids, IMAGE, [SQUARE], may_end_inside_image=True)

    def test_chunk_of_padding_beside_a_cut_image(self) -> None:
        """Rows padded on the right: one is over, the other's image goes on and is cut again."""
        first = torch.tensor([[5, 9, 9], [5, 9, 9]])
        cut = PromptLayout.build(first, IMAGE, [SQUARE, SQUARE], may_end_inside_image=True)
        mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
        second = torch.tensor([[0], [9]])
        layout = PromptLayout.build(second, IMAGE, [], mask, after=cut, may_end_inside_image=True)
        assert layout.unfinished == (2, 3)
        assert layout.kind.tolist() == [[T, X, X, P], [T, X, X, X]]
        with pytest.raises(LvlmAttnError, match=r"Row 0 .* text after 2 of the 4 tokens"):
            PromptLayout.build(second, IMAGE, [], None, after=cut, may_end_inside_image=True)
        both = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
        again = PromptLayout.build(second * 0, IMAGE, [], both, after=cut, may_end_inside_image=True)
        assert again.unfinished == (2, 2)


blocks = st.builds(Block, st.integers(0, 3), st.integers(0, 3), st.just("tile"), newline=st.booleans())
grids = st.builds(
    ImageGrid, st.lists(blocks, min_size=1, max_size=3).map(tuple), st.integers(0, 2), st.integers(0, 1)
).filter(lambda grid: grid.tokens > 0)
rows = st.lists(st.one_of(grids, st.integers(1, 4)), max_size=5)


def batch_of(
    contents: list[list[ImageGrid | int]], side: str
) -> tuple[torch.Tensor, torch.Tensor, list[list[ImageGrid]]]:
    ids = [[t for part in row for t in ([IMAGE] * part.tokens if isinstance(part, ImageGrid) else [5] * part)]
           for row in contents]  # fmt: skip
    length = max(1, *(len(row) for row in ids)) if ids else 1
    pads = [[0] * (length - len(row)) for row in ids]
    ids = [pad + row if side == "left" else row + pad for row, pad in zip(ids, pads)]
    kept = [[part for part in row if isinstance(part, ImageGrid)] for row in contents]
    tensor = torch.tensor(ids)
    return tensor, (tensor != 0).long(), kept


class TestAnyPrompt:
    @sized(80)
    @given(st.lists(rows, min_size=1, max_size=4), st.sampled_from(["left", "right"]))
    def test_equals_a_walk_over_the_tokens(self, contents: list[list[ImageGrid | int]], side: str) -> None:
        ids, mask, kept = batch_of(contents, side)
        layout = PromptLayout.build(ids, IMAGE, [grid for row in kept for grid in row], mask)
        found = torch.stack([getattr(layout, name) for name in FIELDS], -1).tolist()
        for row, expected in enumerate(kept):
            walked = walk(ids[row].tolist(), mask[row].tolist(), expected)
            assert [tuple(place) for place in found[row]] == walked
            seen = False
            for position, place in enumerate(walked):
                seen |= place[0] == X
                assert bool(layout.after_image[row, position]) == (place[0] == T and seen)
        assert layout.grids == tuple(map(tuple, kept))

    @sized(80)
    @given(
        st.lists(rows, min_size=1, max_size=3),
        st.sampled_from(["left", "right"]),
        st.integers(1, 7),
    )
    def test_chunks_give_the_layout_of_the_whole(
        self, contents: list[list[ImageGrid | int]], side: str, chunk: int
    ) -> None:
        ids, mask, kept = batch_of(contents, side)
        whole = PromptLayout.build(ids, IMAGE, [grid for row in kept for grid in row], mask)
        layout: PromptLayout | None = None
        begun = [0] * len(kept)
        for start in range(0, ids.shape[1], chunk):
            stop = min(start + chunk, ids.shape[1])
            new: list[ImageGrid] = []
            for row, images in enumerate(kept):
                tokens = int((ids[row, :stop] == IMAGE).sum())
                while begun[row] < len(images) and sum(g.tokens for g in images[: begun[row]]) < tokens:
                    new.append(images[begun[row]])
                    begun[row] += 1
            layout = PromptLayout.build(
                ids[:, start:stop], IMAGE, new, mask[:, :stop], after=layout, may_end_inside_image=True
            )
        assert layout is not None
        assert same(layout, whole)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Block(-5, 5, "base"), "Block: rows=-5 must be a whole number from 0 on"),
        (lambda: Block(5, 5.0, "base"), "Block: cols=5.0 must be a whole number"),
        (lambda: Block(5, 5, "tiels"), "Block: kind='tiels' must be one of .* Did you mean 'tiles'"),
        (lambda: ImageGrid(Block(5, 5, "base")), r"ImageGrid: blocks=Block\(.* must be a tuple of Block"),
        (lambda: ImageGrid(((5, 5),)), r"ImageGrid: blocks=\(\(5, 5\),\) must be a tuple of Block"),
        (lambda: ImageGrid((), leading_fillers=-1), "ImageGrid: leading_fillers=-1 must be a whole number"),
    ],
)
def test_what_is_no_grid_is_refused_when_it_is_made(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(LvlmAttnError, match=words):
        make()


def test_blocks_may_be_given_as_a_list() -> None:
    block = Block(2, 3, "base")
    assert ImageGrid([block]) == ImageGrid((block,))  # type: ignore[arg-type]
