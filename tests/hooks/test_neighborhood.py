"""Neighborhood: patches that attend to the patches around them."""

import pytest
import torch

import lvlm_attn as la
from tests.hooks.masked import (
    BATCH,
    FEW,
    at_all,
    check,
    check_order,
    layout_of,
    model_of,
    sample_of,
    states_of,
    table,
)
from tests.oracle_setup import generate, relative_error
from tests.tiny import tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

few = pytest.mark.parametrize("name", FEW)


def places(name, batch):
    """By the ids of a row: image, block, row and column of each patch, None elsewhere."""
    found = {}
    for row in tiny_rows(name, model_of(name), batch):
        layout = layout_of(name, row)
        fields = torch.stack((layout.image, layout.block, layout.row, layout.col))[:, 0].T.tolist()
        found[tuple(row["input_ids"][0].tolist())] = [
            tuple(place) if patch else None for place, patch in zip(fields, layout.is_patch[0].tolist())
        ]
    return found


def near(name, batch, k, dilation=1):
    known = places(name, batch)
    steps = {step * dilation for step in range(-(k // 2), k // 2 + 1)}

    def rule(sample, i, j):
        if j > i:
            return False
        where = known[tuple(sample.ids[: sample.prompt])]
        if max(i, j) >= sample.prompt or where[i] is None or where[j] is None:
            return True
        (*block_i, row_i, col_i), (*block_j, row_j, col_j) = where[i], where[j]
        return block_i == block_j and row_i - row_j in steps and col_i - col_j in steps

    return rule


@few
@pytest.mark.parametrize(("k", "dilation"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_equals_the_dense_mask(name, k, dilation):
    if name == "qwen2_5_vl" and k == 5:
        dilation = 2  # a window of five covers its grid of two by three
        k = 3
    check(name, la.Neighborhood(k=k, dilation=dilation), at_all(near(name, BATCH, k, dilation)))


@few
def test_a_subset_of_layers_equals_the_dense_mask(name):
    rule = near(name, BATCH, 3)
    check(name, la.Neighborhood(k=3, layers=(1, 2)), {1: rule, 2: rule})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_window_over_the_grid_keeps_bits(name):
    """For one image of one block; another image or block is never near."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    with torch.no_grad():
        bare = model(**row).logits
        with la.wrap(model, la.Neighborhood(k=21)):
            assert torch.equal(model(**row).logits, bare)


@few
@pytest.mark.parametrize(("k", "dilation"), [(3, 1), (3, 2), (5, 1), (9, 1)])
def test_exactly_the_patches_that_lose_a_key_change(name, k, dilation):
    model = model_of(name)
    for spec in [(1,), (2,)]:
        row = tiny_rows(name, model, [spec])[0]
        rule = near(name, [spec], k, dilation)
        sample = sample_of(row)
        kept = table(rule, sample).sum(1)
        want = [i for i in range(len(sample)) if int(kept[i]) < i + 1]
        bare, got = states_of(model, row), states_of(model, row, la.Neighborhood(k=k, dilation=dilation))
        assert [i for i in range(len(sample)) if not torch.equal(got[1][0, i], bare[1][0, i])] == want


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.Neighborhood(k=3))


@few
@needs_pre_encoding
def test_a_prompt_in_chunks_gives_the_same(name):
    """Where transformers itself does; a cut inside an image is refused by families that need it whole."""
    model = model_of(name)
    row = tiny_rows(name, model, [(1, 2, 9)])[0]
    size = row["input_ids"].shape[1] - 5
    with torch.no_grad(), la.wrap(model, la.Neighborhood(k=3)):
        tokens, whole = generate(model, row, 4)
        again, parts = generate(model, row, 4, prefill_chunk_size=size)
    assert torch.equal(tokens, again)
    assert relative_error(parts[0], whole[0].double()) < 1e-5


def test_written_form_and_bad_parameters():
    for item in (la.Neighborhood(), la.Neighborhood(k=3, dilation=2, layers="1:")):
        assert la.parse(str(item)) == (item,)
    for changes in ({"k": 4}, {"k": 0}, {"k": 3.0}, {"dilation": 0}, {"dilation": True}):
        with pytest.raises(la.LvlmAttnError, match="=".join(map(str, *changes.items()))):
            la.Neighborhood(**changes)


def test_the_batch_has_grids_of_several_kinds():
    """So that the equalities above are about blocks, newlines and unequal grids."""
    kinds = set()
    for name in FEW:
        layout = layout_of(name, tiny_inputs(name, model_of(name), BATCH))
        kinds |= {(len(grid.blocks), bool(layout.is_filler.any())) for row in layout.grids for grid in row}
    assert {blocks for blocks, _ in kinds} >= {1, 2}
    assert any(filler for _, filler in kinds)
