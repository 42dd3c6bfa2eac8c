"""Masks of later calls that say other things of earlier positions, and caches cut into the prompt, on both paths."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions import Amplification
from tests.oracle_setup import DIM, make_sinks
from tests.tiny import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*kernels are not used.*")

HIDDEN = slice(4, 12)
"""A part of the image."""


class Nothing(la.Intervention):
    """Adds 0 to all scores, so that every row is computed and none changes; the same object at every token."""

    def reweigh(self, layer):
        def made():
            touched = torch.ones(layer.layout.batch, layer.call.queries, dtype=torch.bool)
            return Amplification(touched, bias=torch.zeros(layer.layout.batch, 4))

        if layer.call.queries > 1:
            return made()
        if "decoding" not in layer.memory:
            layer.memory["decoding"] = made()
        return layer.memory["decoding"]


class Favours(la.Intervention):
    """Raises the scores of patches."""

    def reweigh(self, layer):
        touched = torch.ones(layer.layout.batch, layer.call.queries, dtype=torch.bool)
        return Amplification(touched, bias=2 * layer.layout.is_patch.float())


@pytest.fixture(scope="module")
def given():
    model = make_sinks(tiny_model("llava", layers=1))
    return model, tiny_inputs("llava", model, [(1, 3, 8)])


CUTS = [
    ("torch", [3], 4),
    ("torch", [1, 1, 1], 4),
    ("torch", [1, 2], 4),
    ("torch", [3], 14),
    ("torch", [1, 1, 1], 14),
    ("triton", [1, 1, 1], 4),
    ("triton", [1, 1, 1], 14),
]


def hiding(length, is_hiding=True):
    mask = torch.ones(1, length, dtype=torch.long)
    if is_hiding:
        mask[:, HIDDEN] = 0
    return mask


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize(("queries", "before"), [(1, 0), (1, 2), (2, 0), (12, 2)])
def test_a_later_mask_may_hide_what_was_seen(given, kernels, queries, before):
    model, inputs = given
    length = inputs["input_ids"].shape[1]

    def run():
        cache = model(**inputs, use_cache=True).past_key_values
        for step in range(before):
            mask = hiding(length + step + 1, is_hiding=False)
            model(input_ids=torch.tensor([[25]]), attention_mask=mask, past_key_values=cache)
        return model(
            input_ids=torch.full((1, queries), 25),
            attention_mask=hiding(length + before + queries),
            past_key_values=cache,
        ).logits

    with torch.no_grad():
        want = run()
        with la.wrap(model, Nothing(), kernels=kernels):
            got = run()
    assert torch.allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_masks_come_and_go_while_an_answer_is_decoded(given, kernels):
    """No mask, one that hides nothing, one that hides a part, and none again: plans follow."""
    model, inputs = given
    length = inputs["input_ids"].shape[1]

    def run():
        cache, found = model(**inputs, use_cache=True).past_key_values, []
        for step, kind in enumerate(["none", "open", "open", "part", "part", "none", "open"]):
            mask = None if kind == "none" else hiding(length + step + 1, kind == "part")
            token = torch.tensor([[25 + step]])
            found.append(model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
        return torch.cat(found)

    with torch.no_grad():
        want = run()
        with la.wrap(model, Nothing(), kernels=kernels):
            got = run()
    assert torch.allclose(got, want, rtol=0, atol=2e-5)
    assert not torch.allclose(want[3], want[2], rtol=0, atol=1e-2)


@pytest.mark.parametrize("kernels", ["torch", "triton"])
@pytest.mark.parametrize("method", ["nothing", "var"])
def test_a_second_turn_of_generate_may_hide_a_part_of_the_first(given, kernels, method):
    model, inputs = given
    make = (
        Nothing if method == "nothing" else lambda: la.VAR(sink_dims=(DIM,), layers="0:", rho=0, mass_floor=0)
    )
    options = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}

    def run():
        first = model.generate(**inputs, **options)
        ids = torch.cat((first.sequences, torch.tensor([[30, 31, 32]])), 1)
        second = model.generate(
            input_ids=ids,
            attention_mask=hiding(ids.shape[1]),
            past_key_values=first.past_key_values,
            output_logits=True,
            **options,
        )
        return torch.stack(second.logits, 1)

    with torch.no_grad():
        with la.wrap(model, make(), kernels="torch"):
            want = run()
        if method == "nothing":
            assert torch.allclose(run(), want, rtol=0, atol=2e-5)
        with la.wrap(model, make(), kernels=kernels):
            got = run()
    assert torch.allclose(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("kernels", "pieces", "kept"), CUTS)
def test_what_follows_a_cache_cut_into_the_prompt_is_what_it_is(given, kernels, pieces, kept):
    """Before the image no image is left; inside it what is left of it is."""
    model, inputs = given
    words = torch.tensor([[21, 22, 23]])

    def run(pieces):
        cache = model(**inputs, use_cache=True).past_key_values
        cache.crop(kept - inputs["input_ids"].shape[1])
        found = [model(input_ids=piece, past_key_values=cache).logits for piece in words.split(pieces, 1)]
        return torch.cat(found, 1)

    with torch.no_grad():
        bare = run([3])
        with la.wrap(model, Favours(), no_image="pass", kernels=kernels):
            if kept == 4:
                assert torch.allclose(run(pieces), bare, rtol=0, atol=2e-5)
            else:
                with pytest.raises(la.LvlmAttnError, match="ends inside an image"):
                    run(pieces)
