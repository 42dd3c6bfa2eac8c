"""Choosing layers, and interventions of one's own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lvlm_attn as la
from lvlm_attn.interventions.layers import format_layers, select_layers
from tests.oracle import read, walk
from tests.oracle_setup import relative_error, sink_model, twin
from tests.tiny import tiny_inputs, tiny_rows


@given(st.sets(st.integers(0, 31), min_size=1))
def test_written_layers_are_read_back(layers):
    assert select_layers(format_layers(tuple(sorted(layers))), 32, "x") == tuple(sorted(layers))


@pytest.mark.parametrize(
    ("layers", "want"),
    [
        (None, tuple(range(8))),
        (3, (3,)),
        ([5, 1, 5], (1, 5)),
        (range(2, 4), (2, 3)),
        ("3", (3,)),
        ("2..4", (2, 3, 4)),
        ("2:-1", (2, 3, 4, 5, 6)),
        ("-2:", (6, 7)),
        (":2", (0, 1)),
        ("[0, 2..3, -1:]", (0, 2, 3, 7)),
    ],
)
def test_forms(layers, want):
    assert select_layers(layers, 8, "x") == want


@pytest.mark.parametrize("layers", [8, -1, [0, 99], "7..8", "12", [], "", "1;2", "a..b", "5..3", "4:4"])
def test_layers_out_of_range_are_refused(layers):
    with pytest.raises(la.LvlmAttnError, match="VAR"):
        select_layers(layers, 8, "VAR")


def test_a_layer_out_of_range_names_the_range():
    for method in (la.VAR(layers=(2, 40)), la.VHR(layers=40)):
        with (
            pytest.raises(la.LvlmAttnError, match=r"40.*5 decoder layers"),
            la.wrap(sink_model("llava"), method),
        ):
            pass


class NoFirstKey(la.Intervention):
    """Takes the first key's weight from every query and gives it to the others."""

    layers = (1, 3)

    def edit_weights(self, layer, weights):
        weights = weights.clone()
        weights[..., 1:, 0] = 0
        return weights / weights.sum(-1, keepdim=True)


class Ablate(la.Intervention):
    """Silences one head and doubles another."""

    layers = (2,)

    def scale_heads(self, layer, heads):
        heads = heads.clone()
        heads[:, :, 3] = 0
        heads[:, :, 1] *= 2
        return heads


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_own_head_scaling_is_a_change_of_the_projection(name, attn):
    model, double = sink_model(name, attn=attn), twin(name)
    row = tiny_rows(name, model, [(1,)])[0]
    weight = double.model.language_model.layers[2].self_attn.o_proj.weight
    with torch.no_grad():
        with la.wrap(model, Ablate()):
            got = model(**row).logits[0]
        kept = weight.clone()
        try:
            weight[:, 24:] = 0
            weight[:, 8:16] *= 2
            want = walk(double, read(double, row)).logits
        finally:
            weight.copy_(kept)
        plain = walk(double, read(double, row)).logits
    assert relative_error(got, want) < 1e-5
    assert relative_error(got, plain) > 1e-3


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_own_weights_equal_a_hand_made_mask(attn):
    """Without its first key a softmax is the softmax over the rest, so a masked model gives the same."""
    model = sink_model("llava", attn=attn)
    rows = tiny_rows("llava", model, [(1,)])
    heads, masks = {}, []

    def blind(module, args, kwargs):
        length = kwargs["hidden_states"].shape[1]
        mask = torch.full((length, length), -1e30).triu(1)
        mask[1:, 0] = -1e30
        masks.append(length)
        return args, kwargs | {"attention_mask": mask[None, None]}

    with torch.no_grad():
        bare = model(**rows[0]).logits
        with la.wrap(model, NoFirstKey()):
            got = model(**rows[0]).logits
        layers = model.model.language_model.layers
        handles = [layers[i].self_attn.register_forward_pre_hook(blind, with_kwargs=True) for i in (1, 3)]
        try:
            want = model(**rows[0]).logits
        finally:
            for handle in handles:
                handle.remove()
    assert not heads
    assert len(masks) == 2
    assert relative_error(got, want.double()) < 1e-5
    assert relative_error(bare, want.double()) > 1e-3


def test_full_weights_are_refused_above_the_limit():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with torch.no_grad(), la.wrap(model, NoFirstKey(), edit_limit=1000):
        with pytest.raises(la.LvlmAttnError, match=r"1000|edit_limit"):
            model(**inputs)


def test_own_interventions_decode_and_see_their_layer():
    seen = []

    class Look(la.Intervention):
        layers = (0, 4)

        def observe(self, layer, hidden):
            seen.append((layer.index, layer.is_prompt, hidden.shape[1], layer.layout.length))

    model = sink_model("llava")
    row = tiny_rows("llava", model, [(1,)])[0]
    length = row["input_ids"].shape[1]
    with torch.no_grad(), la.wrap(model, Look()):
        model.generate(**row, max_new_tokens=3, do_sample=False)
    steps = [(True, length, length), (False, 1, length + 1), (False, 1, length + 2)]
    assert seen == [(layer, *step) for step in steps for layer in (0, 4)]
