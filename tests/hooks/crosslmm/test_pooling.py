"""Cells, their means and middles, and a pooled prompt against the model on a prompt of fewer tokens."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.method import CrossLMM
from lvlm_attn.hooks.crosslmm.pooling import cells, centres, pool_block, pool_features, pooled_positions
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.layout.prompt import PromptLayout
from tests.oracle_setup import relative_error
from tests.tiny import IMAGE, tiny_model, tiny_rows


@given(st.integers(1, 60), st.integers(1, 60))
def test_cells_cover_a_line_in_order_and_have_middles_of_their_own(size, count):
    found = cells(size, count)
    assert len(found) == min(size, count)
    assert found[0][0] == 0
    assert found[-1][1] == size
    assert all(start < stop for start, stop in found)
    assert all(before[1] >= after[0] > before[0] for before, after in itertools.pairwise(found))
    middles = centres(size, count)
    assert len(set(middles)) == len(middles)
    assert all(start <= middle < stop for middle, (start, stop) in zip(middles, found))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5))
def test_a_pooled_token_is_the_mean_of_its_cell(rows, cols, down, across):
    features = torch.randn(rows, cols, 3, dtype=torch.float64)
    got = pool_block(features, (down, across))
    for i, (top, bottom) in enumerate(cells(rows, down)):
        for j, (left, right) in enumerate(cells(cols, across)):
            assert torch.allclose(got[i, j], features[top:bottom, left:right].flatten(0, 1).mean(0))


@pytest.mark.parametrize("pool", ["avg_cells", "bilinear"])
def test_a_grid_as_fine_as_the_block_keeps_every_bit(pool):
    features = torch.randn(4, 6, 5)
    assert torch.equal(pool_block(features, (4, 6), pool), features)
    assert torch.equal(pool_block(features, (27, 27), pool), features)
    assert pool_block(features, (27, 2), pool).shape == (4, 2, 5)


def test_bilinear_pooling_of_27_to_3_takes_the_middle_of_each_cell():
    features = torch.randn(27, 27, 4, dtype=torch.float64)
    got = pool_block(features, (3, 3), "bilinear")
    assert torch.allclose(got, features[[4, 13, 22]][:, [4, 13, 22]])
    assert centres(27, 3) == [4, 13, 22]


def test_bfloat16_features_are_averaged_in_float32():
    features = torch.randn(12, 12, 8).bfloat16()
    want = pool_block(features.float(), (3, 3)).bfloat16()
    assert torch.equal(pool_block(features, (3, 3)), want)


def test_images_and_blocks_are_pooled_one_by_one_and_newlines_stay():
    grid = ImageGrid((Block(2, 2, "base"), Block(2, 3, "tiles", newline=True)))
    image = [9] * grid.tokens
    ids = torch.tensor([[5, *image, 6, *image, 7], [0] * 13 + [5, *image, 8]])
    layout = PromptLayout.build(ids, 9, [grid] * 3, (ids != 0).long())
    is_pooled = pooled_positions(layout, (1, 1))
    assert is_pooled.sum(1).tolist() == [4, 2]
    assert not (is_pooled & ~layout.is_patch).any()
    features = torch.randn(2, ids.shape[1], 3)
    got = pool_features(features, layout, 0, (1, 1))
    assert torch.equal(got[~is_pooled], features[~is_pooled])
    first = is_pooled[0].nonzero().flatten().tolist()
    assert torch.allclose(got[0, first[0]], features[0, 1:5].mean(0))
    tiles = features[0, [5, 6, 7, 9, 10, 11]]
    assert torch.allclose(got[0, first[1]], tiles.mean(0))


def test_a_pooled_prompt_is_a_prompt_of_fewer_tokens_at_their_old_positions():
    """The stock model, given pooled embeddings alone and explicit positions, says the same; also while decoding."""
    model = tiny_model("llava", seed=3)
    row = tiny_rows("llava", model, [(2, 3, 4)])[0]
    ids = row["input_ids"][0]
    with torch.no_grad():
        features = model.model.get_image_features(row["pixel_values"], return_dict=True).pooler_output
        kept, embeds = [], []
        words, image, seen = model.get_input_embeddings()(ids), -1, 0
        for position, token in enumerate(ids.tolist()):
            if token != IMAGE:
                kept.append(position)
                embeds.append(words[position])
                continue
            if ids[position - 1] != IMAGE:
                image, seen = image + 1, 0
            across = {1: slice(0, 3), 3: slice(2, 5)}
            line, column = divmod(seen, 5)
            if line in across and column in across:
                square = features[image].view(5, 5, -1)
                kept.append(position)
                embeds.append(square[across[line], across[column]].flatten(0, 1).mean(0))
            seen += 1
        short = model.model.language_model(
            inputs_embeds=torch.stack(embeds)[None], position_ids=torch.tensor([kept]), use_cache=True
        )
        want = [model.lm_head(short.last_hidden_state)[0]]
        tokens, length = [41, 77, 12], len(ids)
        for step, token in enumerate(tokens):
            short = model.model.language_model(
                input_ids=torch.tensor([[token]]),
                position_ids=torch.tensor([[length + step]]),
                past_key_values=short.past_key_values,
            )
            want.append(model.lm_head(short.last_hidden_state)[0])
        with la.wrap(model, CrossLMM.reuse(grid=2, w=0.0)):
            out = model(**row, use_cache=True)
            got = [out.logits[0, kept]]
            for token in tokens:
                out = model(
                    input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True
                )
                got.append(out.logits[0])
    assert len(kept) == len(ids) - 2 * 21
    assert relative_error(torch.cat(got), torch.cat(want).double()) < 1e-5
