"""Indexing of recorded attention, and its numbers by patch, pixel, word and key."""

import numpy as np
import pytest
import torch

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.prompt import Block, ImageGrid
from lvlm_attn.maps.geometry import Frame, Level
from lvlm_attn.maps.maps import seen
from lvlm_attn.maps.onto_image import MapImage, pixels_of
from lvlm_attn.maps.statistics import pointing
from tests.maps.made import hand_made, toy_maps


def test_the_promised_name():
    assert la.AttentionMaps is type(hand_made())


def test_a_word_of_several_tokens_is_one_entry():
    maps = hand_made()
    assert maps["hotdog"].rows.tolist() == [[17, 18]]
    assert maps["a", 2].rows.tolist() == [[20]]
    assert maps["A hotdog"].rows.tolist() == [[16, 17, 18]]
    assert maps[1:3].rows.tolist() == maps["hotdog"].rows.tolist()
    assert maps[-1].tokens == ["."]
    assert [one.tokens[0] for one in maps] == maps.tokens
    assert maps.words == ["A", "hotdog", "dog"]


def test_numbers_are_means_over_what_is_left():
    maps = hand_made()
    weights = torch.stack([maps.weights[layer] for layer in maps.layers])[:, 0].double()
    patches = slice(2, 14)
    assert np.allclose(maps.grid()[0].ravel(), weights.mean((0, 1, 2))[patches])
    picked = maps["hotdog"].layer(1).head(0)
    assert picked.heads == (0,)
    assert picked.layers == (1,)
    assert np.allclose(picked.grid()[0].ravel(), weights[1, 0, 1:3].mean(0)[patches])
    assert picked.pixels().shape == (30, 40)
    assert picked.pixels().sum() == pytest.approx(
        float(weights[1, 0, 1:3, patches].sum(-1).mean()), abs=1e-12
    )
    assert picked.to_numpy().shape == (1, 1, 1, 2, maps.layout.length)


def test_pixels_of_a_patch_hold_its_weight():
    maps = hand_made()["dog"]
    grid, pixels = maps.grid()[0], maps.pixels()
    for row in range(3):
        for col in range(4):
            cell = pixels[row * 10 : row * 10 + 10, col * 10 : col * 10 + 10]
            assert cell.sum() == pytest.approx(grid[row, col])
            assert np.ptp(cell) < 1e-15


def test_smooth_pixels_keep_the_sum():
    maps = hand_made()["dog"]
    assert maps.pixels(smooth=True).sum() == pytest.approx(maps.pixels().sum())
    assert not np.allclose(maps.pixels(smooth=True), maps.pixels())


@pytest.mark.parametrize("size", [(640, 480), (1, 300), (300, 1), (7, 5), (3, 2)])
@pytest.mark.parametrize("margin", [0.0, 0.4, 1.3])
def test_pixels_sum_to_the_weight_on_the_picture(size, margin):
    """Also where cells are smaller than a pixel, and where the grid reaches beyond the picture."""
    width, height = size
    cell_x, cell_y = width / 4, height / 6
    frame = Frame(-margin * cell_x, -margin * cell_y, width + margin * cell_x, height + margin * cell_y)
    grid = np.random.default_rng(0).random((6, 4))
    image = MapImage(size, (Level(frame, 6, 4, ((0, 0, 0),)),))
    edges_x, edges_y = np.linspace(frame.left, frame.right, 5), np.linspace(frame.top, frame.bottom, 7)
    shows_x = (edges_x[1:] > 1e-9) & (edges_x[:-1] < width - 1e-9)
    shows_y = (edges_y[1:] > 1e-9) & (edges_y[:-1] < height - 1e-9)
    wanted = grid[np.ix_(shows_y, shows_x)].sum()
    assert pixels_of(image, [grid]).sum() == pytest.approx(wanted)


def test_ratios_are_painted_and_not_divided():
    level = Level(Frame(0, 0, 40, 30), 3, 4, ((0, 0, 0),))
    ratios = np.arange(12.0).reshape(3, 4)
    painted = pixels_of(MapImage((40, 30), (level,)), [ratios], is_ratio=True)
    assert painted[0, 0] == 0
    assert painted[29, 39] == 11
    assert painted.mean() == pytest.approx(ratios.mean())


def test_thumbnail_and_tiles_add_up_or_stand_apart():
    coarse, fine = (
        Level(Frame(0, 0, 8, 4), 1, 2, ((2, 0, 0),)),
        Level(Frame(0, 0, 8, 4), 2, 4, ((0, 0, 0), (1, 0, 2))),
    )
    image = MapImage((8, 4), (coarse, fine))
    blocks = [np.full((2, 2), 1.0), np.full((2, 2), 2.0), np.full((1, 2), 5.0)]
    assert pixels_of(image, blocks).sum() == pytest.approx(22)
    assert pixels_of(image, blocks, level="coarse").sum() == pytest.approx(10)
    apart = pixels_of(image, blocks, level="fine")
    assert apart[:, :4].sum() == pytest.approx(4)
    assert apart[:, 4:].sum() == pytest.approx(8)
    with pytest.raises(LvlmAttnError, match="has no tiles"):
        pixels_of(MapImage((8, 4), (coarse,)), blocks, level="fine")


def test_what_the_processor_crops_is_zero():
    level = Level(Frame(10, 0, 30, 20), 2, 2, ((0, 0, 0),))
    values = pixels_of(MapImage((40, 20), (level,)), [np.ones((2, 2))])
    assert values.sum() == pytest.approx(4)
    assert not values[~seen(level.frame, (40, 20))].any()


def test_newlines_belong_to_no_pixel():
    maps = hand_made(grid=ImageGrid((Block(3, 4, "base", newline=True),)))
    patches = maps.layout.is_patch[0]
    assert int(patches.sum()) == 12
    assert maps.pixels().sum() == pytest.approx(float(maps.mean()[patches.numpy()].sum()))


def test_text_and_who_attends():
    maps = hand_made()
    text = maps["dog"].text()
    assert [item.text for item in text][:2] == ["<s>", "USER:"]
    assert {item.kind for item in text} == {"text", "generated"}
    mean = maps["dog"].mean()
    assert sum(item.weight for item in text) + mean[2:14].sum() == pytest.approx(1)
    rows = maps.attended_by((1, 2))
    column = torch.stack(list(maps.weights.values()))[:, 0, :, :, 2 + 4 + 2].mean((0, 1))
    assert [item.weight for item in rows] == pytest.approx(column.tolist())
    assert [item.text for item in rows] == maps.tokens
    assert maps.attended_by((0, 0, 1, 2)) == rows
    assert maps.attended_by(2 + 4 + 2) == rows
    hot = maps.attended_by("hotdog")
    assert [item.weight > 0 for item in hot] == [False, False, True, True, True, True, True]


def test_samples_of_a_batch():
    maps = hand_made(batch=3)
    two = maps.sample(1)
    assert torch.equal(two.weights[0][0], maps.weights[0][1])
    assert torch.equal(maps.sample(-1).weights[0], maps.sample(2).weights[0])
    with pytest.raises(LvlmAttnError, match=r"choose one, as in maps.sample\(0\)"):
        maps["dog"]
    with pytest.raises(LvlmAttnError, match="no sample 3"):
        maps.sample(3)


def test_rows_that_are_missing_are_left_out():
    maps = hand_made(batch=2)
    maps.rows[1, 5:] = -1
    maps.targets[1, 5:] = -1
    short = maps.sample(1)
    assert len(short) == 5
    assert np.allclose(
        short.mean(), torch.stack([w[1, :, :5] for w in maps.weights.values()]).mean((0, 1, 2))
    )


def test_data_frame():
    frame = hand_made()["hotdog"].to_pandas()
    assert len(frame) == 2 * 2 * 2 * hand_made().layout.length
    one = frame[(frame.layer == 1) & (frame["head"] == 0) & (frame.row == 1) & (frame.patch_row == 2)]
    assert np.allclose(one.weight, hand_made().weights[1][0, 0, 2, 2 + 8 : 2 + 12])
    assert list(frame.token.unique()) == [" hot", "dog"]
    with pytest.raises(LvlmAttnError, match="above limit=10"):
        hand_made().to_pandas(limit=10)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda maps: maps["cat"], "No recorded token holds the word 'cat'"),
        (lambda maps: maps["dg"], "Did you mean 'dog'?"),
        (lambda maps: maps["dog", 2], "mentioned 1 time"),
        (lambda maps: maps[7], "There is no row 7"),
        (lambda maps: maps[1.5], "no choice of tokens"),
        (lambda maps: maps[()], "no choice of tokens"),
        (lambda maps: maps.layer(9), "Layer 9 was not recorded; these maps hold layers 0, 1"),
        (lambda maps: maps.head(9), "Head 9 was not recorded"),
        (lambda maps: maps.pixels(image=1), "There is no image 1"),
        (lambda maps: maps.pixels(level="both"), "must be 'all', 'coarse'"),
        (lambda maps: maps[3:3].mean(), "no rows to average"),
        (lambda maps: maps.attended_by("cat"), "No word 'cat' stands in the prompt"),
        (lambda maps: maps.attended_by((3, 0)), "no patch in row 3 and column 0"),
        (lambda maps: maps.attended_by(99), "Position 99 is padding or outside"),
        (lambda maps: maps.view("relativ"), "Did you mean 'relative'?"),
    ],
)
def test_one_sentence_each(ask, message):
    with pytest.raises(LvlmAttnError, match=None) as caught:
        ask(hand_made())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_picture_patches_are_known_and_pixels_are_not():
    from dataclasses import replace

    maps = replace(hand_made(), images=((MapImage.of(hand_made().layout.grids[0][0], None, None, None),),))
    assert maps.grid()[0].shape == (3, 4)
    with pytest.raises(LvlmAttnError, match="no known place in pixels: the picture itself is not known"):
        maps.pixels()


def test_without_a_grid():
    from lvlm_attn.layout.prompt import PromptLayout

    maps = hand_made()
    from dataclasses import replace

    ids = torch.full((1, maps.layout.length), 5)
    text = replace(maps, layout=PromptLayout.build(ids, 9, []), images=((),))
    with pytest.raises(LvlmAttnError, match="no image with a grid of patches"):
        text.grid()


def test_on_the_toy_words_look_at_their_objects():
    lifts = []
    for index in range(4):
        maps = toy_maps(index=index)
        for item in toy.scenes("test")[index].objects:
            if item.name in maps.words:
                found = pointing(maps[item.name].layer(4).pixels(), [item.box])
                lifts.append(found.energy / found.area)
    assert len(lifts) > 4
    assert np.mean(lifts) > 4
