"""VisualSelf: image tokens that attend to themselves, and perhaps to the text before them."""

from unittest.mock import patch

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.kernels import visible_path
from tests.hooks.masked import (
    BATCH,
    FEW,
    LAYERS,
    at_all,
    check,
    check_order,
    model_of,
    sample_of,
    states_of,
    twin_of,
)
from tests.tiny import IMAGE, tiny_inputs, tiny_rows

few = pytest.mark.parametrize("name", FEW)
modes = pytest.mark.parametrize("mode", ["self", "self+prefix"])


def alone(sample, i, j):
    return i == j or (j < i and not sample.is_image(i))


def with_prefix(sample, i, j):
    return i == j or (j < i and not (sample.is_image(i) and sample.is_image(j)))


RULES = {"self": alone, "self+prefix": with_prefix}


class Embeds(la.Intervention):
    """Changes the embeddings that enter the first layer."""

    def __init__(self, change):
        self.change = change

    def edit_embeds(self, call, embeds):
        return self.change(embeds.clone(), call.layout.image >= 0)


@few
@modes
def test_equals_the_dense_mask(name, mode):
    """Rows of a batch, both paddings, several images that do not read each other, plain and generated."""
    check(name, la.VisualSelf(mode), at_all(RULES[mode]))


@few
def test_a_subset_of_layers_equals_the_dense_mask(name):
    check(name, la.VisualSelf("self", layers=(1, 3)), {1: alone, 3: alone})


@few
def test_the_mask_equals_the_value_output_path(name):
    """Own values against attention over one key, on a whole model."""
    model = twin_of(name)
    inputs = tiny_inputs(name, model_of(name), BATCH)
    inputs["pixel_values"] = inputs["pixel_values"].double()
    touched, attend, attended = visible_path.touched_queries, visible_path.attend_masked, []

    def no_shortcut(visibilities, geometry, device):
        return touched(visibilities, geometry, device)[0], None

    def note(query, *args):
        attended.append(query.shape[2])
        return attend(query, *args)

    with (
        torch.no_grad(),
        la.wrap(model, la.VisualSelf("self")),
        patch.object(visible_path, "attend_masked", note),
    ):
        fast = model(**inputs).logits
        assert not attended
        with patch.object(visible_path, "touched_queries", no_shortcut):
            slow = model(**inputs).logits
        images = int((inputs["input_ids"] == IMAGE).sum(1).max())
        assert attended == [images] * LAYERS
    # A softmax over one key is 1 exactly.
    assert torch.equal(fast, slow)


@few
def test_the_head_outputs_of_image_tokens_are_their_values(name):
    """Query and key weights and positions drop out: what enters the output projection is Wv of the normed input."""
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    image = torch.tensor([sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])
    layer = model.model.language_model.layers[2]
    seen = {}
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen.update(
                normed=kwargs.get("hidden_states", args[0] if args else None)
            ),
            with_kwargs=True,
        ),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.update(heads=args[0])),
    ]
    try:
        with torch.no_grad(), la.wrap(model, la.VisualSelf("self")):
            model(**row)
            value = layer.self_attn.v_proj(seen["normed"])
    finally:
        for hook in hooks:
            hook.remove()
    groups = value.view(*value.shape[:2], 2, -1).repeat_interleave(2, 2).flatten(2)
    assert torch.equal(seen["heads"][0, image], groups[0, image])
    assert not torch.isclose(seen["heads"][0, ~image][1:], groups[0, ~image][1:]).all(1).any()


@few
def test_permuting_image_tokens_permutes_their_states(name):
    """With mode self in all layers an image token is a function of itself, and positions do not matter."""
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    where = torch.tensor([k for k in range(row["input_ids"].shape[1]) if sample_of(row).is_image(k)])
    order = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))

    def permute(embeds, image):
        embeds[0, where] = embeds[0, where[order]]
        return embeds

    before = states_of(model, row, la.VisualSelf("self"))
    after = states_of(model, row, Embeds(permute), la.VisualSelf("self"))
    for one, other in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(other[0, where], one[0, where[order]], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(other[0, where], one[0, where], atol=1e-2)


@few
@modes
def test_an_image_token_does_not_reach_another(name, mode):
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    where = [k for k in range(row["input_ids"].shape[1]) if sample_of(row).is_image(k)]

    def bump(embeds, image):
        embeds[0, where[1]] += 1
        return embeds

    before = states_of(model, row, la.VisualSelf(mode))
    after = states_of(model, row, Embeds(bump), la.VisualSelf(mode))
    stock = states_of(model, row, Embeds(bump))
    bare = states_of(model, row)
    second = [k for k in where if k > where[1]]
    if mode == "self+prefix":  # text between the images carries it on, to the second image
        second = [k for k in second if all(place in where for place in range(where[1], k))]
    assert second
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[0, second], other[0, second])
        assert not torch.equal(one[0, where[1]], other[0, where[1]])
    assert not torch.allclose(bare[-1][0, second], stock[-1][0, second], atol=1e-3)


@few
@modes
def test_text_of_the_first_layer_is_stock(name, mode):
    """And layers that are not chosen are as they were."""
    model = model_of(name)
    row = tiny_rows(name, model, [(2,)])[0]
    text = torch.tensor([not sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1])])
    bare = states_of(model, row)
    everywhere = states_of(model, row, la.VisualSelf(mode))
    late = states_of(model, row, la.VisualSelf(mode, layers=2))
    # Where most rows attend only to themselves the others are not the backend's, whose last bits differ.
    torch.testing.assert_close(everywhere[1][0, text], bare[1][0, text], rtol=0, atol=1e-5)
    assert not torch.allclose(everywhere[1], bare[1], atol=1e-3)
    for index in range(LAYERS + 1):
        assert torch.equal(late[index], bare[index]) == (index <= 2)


def test_no_layers_is_an_error():
    with (
        pytest.raises(la.LvlmAttnError, match="chooses none"),
        la.wrap(model_of("llava"), la.VisualSelf(layers=())),
    ):
        pass


@few
def test_hollow_with_a_window_of_one_is_the_same(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    results = []
    for item in (la.VisualSelf(), la.Hollow(window=1)):
        with torch.no_grad(), la.wrap(model, item):
            results.append(model(**inputs).logits)
    assert torch.equal(*results)


@few
def test_a_sample_after_another_and_an_exception(name):
    check_order(name, la.VisualSelf("self"))


def test_written_form_and_bad_mode():
    for item in (la.VisualSelf(), la.VisualSelf("self", layers=[2, 3])):
        assert la.parse(str(item)) == (item,)
    assert la.parse("visual_self:mode=self_prefix") == (la.VisualSelf(),)
    assert la.VisualSelf("self+prefix") == la.VisualSelf("self_prefix") == la.VisualSelf()
    with pytest.raises(la.LvlmAttnError, match="one of self, self_prefix"):
        la.VisualSelf("both")


@few
def test_the_report_counts_image_tokens(name):
    model = model_of(name)
    row = tiny_rows(name, model, [(1,)])[0]
    with torch.no_grad(), la.wrap(model, la.VisualSelf(layers=(1, 2))) as lvlm:
        model(**row)
        tokens = sum(sample_of(row).is_image(k) for k in range(row["input_ids"].shape[1]))
        # The first image token has no other one before it.
        assert lvlm.report().rows == ([{"layer": 1, "rows": tokens - 1}, {"layer": 2, "rows": tokens - 1}],)
