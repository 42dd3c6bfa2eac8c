"""Delayed: text that does not see the image in the first layers."""

import pytest
import torch

import lvlm_attn as la
from tests.hooks.masked import BATCH, FEW, LAYERS, check, check_order, model_of, sample_of, states_of
from tests.oracle_setup import generate
from tests.tiny import tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)


def blind(sample, i, j):
    return j <= i and (sample.is_image(i) or not sample.is_image(j))


@few
@pytest.mark.parametrize("start", [1, 3, LAYERS])
def test_equals_the_dense_mask(name, start):
    check(name, la.Delayed(start=start), dict.fromkeys(range(start), blind))


@few
def test_the_default_is_a_quarter_of_the_layers(name):
    model = model_of(name)
    with la.wrap(model, la.Delayed()) as lvlm:
        assert lvlm.interventions == (la.Delayed(start=LAYERS // 4),)


@few
def test_the_image_does_not_matter_if_text_never_reads_it(name):
    """With every layer blind, logits of text are those of other pixels."""
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    other = dict(inputs, pixel_values=inputs["pixel_values"].flip(-1) + 1)
    results = []
    with torch.no_grad(), la.wrap(model, la.Delayed(start=LAYERS)):
        for each in (inputs, other):
            results.append(generate(model, each, 5))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    bare = [generate(model, each, 5)[1] for each in (inputs, other)]
    assert not torch.equal(*bare)


@few
def test_image_rows_and_text_before_the_image_keep_bits_in_the_first_layer(name):
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    sample = sample_of(row)
    first = sample.image.index(0)
    bare, got = states_of(model, row), states_of(model, row, la.Delayed(start=1))
    changed = [k for k in range(len(sample)) if not torch.equal(got[1][0, k], bare[1][0, k])]
    assert changed == [k for k in range(first, len(sample)) if not sample.is_image(k)]


@few
def test_start_zero_keeps_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.Delayed(start=0)) as lvlm:
            assert torch.equal(model(**inputs).logits, bare)
            assert lvlm.interventions == ()


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.Delayed(start=2))


def test_written_form_and_bad_start():
    for item in (la.Delayed(), la.Delayed(start=2)):
        assert la.parse(str(item)) == (item,)
    for start in (-1, 1.5, True, "two"):
        with pytest.raises(la.LvlmAttnError, match="start="):
            la.Delayed(start=start)
    with (
        pytest.raises(la.LvlmAttnError, match="4 decoder layers"),
        la.wrap(model_of("llava"), la.Delayed(start=LAYERS + 1)),
    ):
        pass
