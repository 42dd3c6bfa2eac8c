"""FrozenVisual: image tokens that leave a layer as they entered."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.frozen_visual import LLAVA_7B, LLAVA_13B, LLAVA_NEXT_7B, default_layers
from tests.hooks.masked import BATCH, FEW, LAYERS, check, check_order, model_of, sample_of, states_of
from tests.tiny import tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)


@few
@pytest.mark.parametrize("layers", [(0, 2), None], ids=["chosen", "default"])
def test_equals_the_oracle(name, layers):
    """Keys and values of frozen tokens under the weights of the layer stay readable."""
    check(name, la.FrozenVisual(layers=layers), frozen=layers or default_layers(name, LAYERS))


@few
def test_image_tokens_leave_as_they_entered(name):
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    image = torch.tensor([sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])
    states = states_of(model, row, la.FrozenVisual(layers=(1, 3)))
    bare = states_of(model, row)
    assert torch.equal(states[1], bare[1])
    for layer in range(LAYERS):
        before, after = states[layer][0], states[layer + 1][0]
        assert torch.equal(before[image], after[image]) == (layer in (1, 3))
        assert not torch.isclose(before[~image], after[~image]).all(1).any()
    # Text of the first frozen layer attends to what it always did.
    assert torch.equal(states[2][0, ~image], bare[2][0, ~image])


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.FrozenVisual())


@few
def test_a_batch_without_images_in_the_frozen_layers_keeps_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(0,), (0,)])
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, la.FrozenVisual(), no_image="pass"):
            assert torch.equal(model(**inputs).logits, bare)
        with la.wrap(model, la.FrozenVisual()), pytest.raises(la.LvlmAttnError, match="no image"):
            model(**inputs)


def test_published_lists():
    by_7b, by_13b, by_next = (
        tuple(sorted(int(layer) for layer in text.split(",")))
        for text in (LLAVA_7B, LLAVA_13B, LLAVA_NEXT_7B)
    )
    assert default_layers("llava", 32) == by_7b
    assert default_layers("llava", 40) == by_13b
    assert default_layers("llava_next", 32) == by_next
    assert [len(set(item)) for item in (by_7b, by_13b, by_next)] == [19, 24, 19]
    assert default_layers("qwen2_5_vl", 32) == by_7b  # another model of the same depth
    for count in range(2, 81):
        layers = default_layers("qwen2_5_vl", count)
        assert layers == tuple(sorted(set(layers)))
        assert 0 <= layers[0] <= layers[-1] < count
        if count % 32 == 0:
            assert len(layers) == 19 * count // 32
        # The later half is what the lists are about.
        assert sum(layer >= count / 2 for layer in layers) >= len(layers) / 2


def test_written_form_and_report():
    for item in (la.FrozenVisual(), la.FrozenVisual(layers="2:")):
        assert la.parse(str(item)) == (item,)
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad(), la.wrap(model, la.FrozenVisual(layers=1)) as lvlm:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
        assert lvlm.report().rows == ([{"layer": 1, "frozen": 75}],)
