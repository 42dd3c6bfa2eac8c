"""Hollow: image tokens that attend to text and to the image tokens of a window."""

import pytest
import torch

import lvlm_attn as la
from tests.hooks.masked import BATCH, FEW, at_all, check, check_order, model_of, sample_of, states_of
from tests.tiny import tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)


def hollow(window):
    def rule(sample, i, j):
        return j <= i and (not sample.is_image(i) or not sample.is_image(j) or i - j < window)

    return rule


@few
@pytest.mark.parametrize("window", [1, 3, 10])
def test_equals_the_dense_mask(name, window):
    if name == "qwen2_5_vl":
        window = min(window, 5)  # its smallest image has six tokens
    check(name, la.Hollow(window=window), at_all(hollow(window)))


@few
def test_a_subset_of_layers_equals_the_dense_mask(name):
    check(name, la.Hollow(window=2, layers=(0, 2)), {0: hollow(2), 2: hollow(2)})


@few
def test_a_window_over_all_images_keeps_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.Hollow(window=inputs["input_ids"].shape[1])):
            assert torch.equal(model(**inputs).logits, bare)


@few
def test_rows_whose_window_reaches_the_first_image_token_keep_bits(name):
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    sample = sample_of(row)
    first = sample.image.index(0)
    bare, got = states_of(model, row), states_of(model, row, la.Hollow(window=3))
    last = first + 3
    assert torch.equal(got[1][0, :last], bare[1][0, :last])
    changed = [k for k in range(len(sample)) if not torch.equal(got[1][0, k], bare[1][0, k])]
    assert changed == [k for k in range(last, len(sample)) if sample.is_image(k)]


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.Hollow(window=2))


def test_written_form_and_bad_window():
    for item in (la.Hollow(), la.Hollow(window=3, layers=[1, 2])):
        assert la.parse(str(item)) == (item,)
    for window in (0, -1, 2.5, True, None):
        with pytest.raises(la.LvlmAttnError, match="window="):
            la.Hollow(window=window)
