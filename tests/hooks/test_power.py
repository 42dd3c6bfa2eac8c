"""Power: blocks at distances that are powers of two."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.power import first_gap, is_within_reach
from tests.hooks.masked import BATCH, FEW, at_all, check, check_order, model_of, sample_of, states_of, table
from tests.tiny import tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)


def power(block, window):
    def rule(sample, i, j):
        distance = i // block - j // block
        return j <= i and (distance < window or bin(distance).count("1") == 1 or j < block)

    return rule


@few
@pytest.mark.parametrize(("block", "window"), [(1, 1), (2, 1), (1, 4), (3, 2)])
def test_equals_the_dense_mask(name, block, window):
    """Padding does not count, and generated tokens follow the rule; text alone is changed as well."""
    batch = [(1,), (0, 8, 8), (2,)]
    if (block, window) == (3, 2):
        batch = [(1, 2, 12), (2, 5, 15)]
    check(
        name,
        la.Power(block=block, window=window),
        at_all(power(block, window)),
        batch=batch,
        keeps_text=False,
    )


@few
def test_a_subset_of_layers_equals_the_dense_mask(name):
    rule = power(1, 1)
    check(name, la.Power(block=1, window=1, layers=(1, 2)), {1: rule, 2: rule}, keeps_text=False)


@few
@pytest.mark.parametrize(("block", "window"), [(1, 1), (2, 1), (1, 4), (1, 5), (3, 1)])
def test_exactly_the_tokens_that_lose_a_key_change(name, block, window):
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    sample = sample_of(row)
    kept = table(power(block, window), sample).sum(1)
    want = [i for i in range(len(sample)) if int(kept[i]) < i + 1]
    bare, got = states_of(model, row), states_of(model, row, la.Power(block=block, window=window))
    assert [i for i in range(len(sample)) if not torch.equal(got[1][0, i], bare[1][0, i])] == want


@few
def test_short_prompts_keep_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare = model(**inputs).logits
        for item in (la.Power(block=128), la.Power(block=1, window=inputs["input_ids"].shape[1])):
            with la.wrap(model, item):
                assert torch.equal(model(**inputs).logits, bare)


def reads(count):
    """Which of `count` tokens attends to which, for blocks of one token and no first block to fall back on."""
    number = torch.arange(1, count + 1)[None]
    index = torch.arange(count)
    readable = is_within_reach(number, 1)(index[None, :, None], index[None, None])[0]
    return (readable & (index[:, None] >= index)).double()


def test_a_distance_is_reached_in_as_many_layers_as_it_has_binary_ones():
    step = reads(70)
    reached = torch.eye(70, dtype=torch.double)
    first = torch.full((70,), 99)
    for layer in range(8):
        for distance in range(70):
            if reached[69, 69 - distance] > 0:
                first[distance] = min(int(first[distance]), layer)
        reached = ((reached @ step) > 0).double()
    assert first.tolist() == [bin(distance).count("1") for distance in range(70)]


def test_all_distances_up_to_a_bound_are_reached():
    """After L layers every distance up to 2^(L+1) - 2; one more is out of reach."""
    step = reads(130)
    reached = torch.eye(130, dtype=torch.double)
    for layers in range(1, 7):
        reached = ((reached @ step) > 0).double()
        bound = 2 ** (layers + 1) - 2
        assert (reached[129, 129 - bound :] > 0).all()
        if bound + 1 <= 129:
            assert reached[129, 129 - bound - 1] == 0


def test_the_first_gap():
    for window in range(1, 40):
        gaps = [d for d in range(1, 100) if d >= window and bin(d).count("1") > 1]
        assert first_gap(window) == gaps[0]


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.Power(block=1, window=1))


def test_text_without_an_image_is_taken_too():
    model = model_of("llava")
    row = tiny_rows("llava", model, [(0, 12, 12)])[0]
    with torch.no_grad():
        bare = model(**row).logits
        with la.wrap(model, la.Power(block=2, window=1)):
            assert not torch.equal(model(**row).logits, bare)


def test_written_form_and_bad_parameters():
    for item in (la.Power(), la.Power(block=4, window=2, layers="1:")):
        assert la.parse(str(item)) == (item,)
    for changes in ({"block": 0}, {"block": 1.5}, {"window": 0}, {"window": True}):
        with pytest.raises(la.LvlmAttnError, match="=".join(map(str, *changes.items()))):
            la.Power(**changes)
