"""PAI against an oracle that computes every score itself in float64, and reads prompt and words whole."""

import contextlib

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn as la
from lvlm_attn.runtime import registry
from tests.decoding.steps import (
    check_an_exception_restores,
    cut,
    double,
    error,
    full_logits,
    generated,
    model_of,
    without_images,
)
from tests.tiny import IMAGE, NAMES, tiny_inputs, tiny_model, tiny_rows

BATCH = [(1,), (2,), (0,)]
FEW = ["llava", "llava_next", "qwen2_5_vl"]


@contextlib.contextmanager
def amplified(model, row, alpha, layers):
    """The language model with its attention written out; rows from the prompt's end on see the image louder."""
    is_image = row["input_ids"][0] == IMAGE
    prompt = len(is_image)

    def attention(module, query, key, value, attention_mask=None, *, scaling, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = (item.repeat_interleave(groups, 1) for item in (key, value))
        scores = query @ key.transpose(-1, -2) * scaling
        length = scores.shape[-1]
        if module.layer_idx in layers:
            gain = torch.zeros(length, length, dtype=scores.dtype)
            gain[prompt - 1 :, :prompt] = alpha * is_image
            scores = scores + gain * scores.abs()
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    config = model.model.language_model.config
    before = config._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register("written_out", attention)
    config._attn_implementation_internal = "written_out"
    try:
        yield
    finally:
        config._attn_implementation_internal = before
        del ALL_ATTENTION_FUNCTIONS._global_mapping["written_out"]


def truth(name, row, tokens, alpha, gamma, beta=0.1, layers=(2, 3)):
    """PAI's logits along a row that goes on with `tokens`; guidance only where gamma is not 1."""
    model = double(name)
    with amplified(model, row, alpha, layers):
        main = full_logits(model, row, tokens)
    if gamma == 1 or "pixel_values" not in row:
        return main
    words = full_logits(model, without_images(row), tokens)
    p, q = main.log_softmax(-1), words.log_softmax(-1)
    return cut(gamma * (p - q) + q, main, beta)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.5, 1.0), (0.0, 1.4), (0.3, 1.1)])
@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_two_separate_recomputes(name, alpha, gamma):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.PAI(alpha=alpha, gamma=gamma)) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    for index, row in enumerate(rows):
        want = truth(name, row, tokens[index], alpha, gamma)
        assert error(logits[index], want) < 2e-5
        bare = full_logits(double(name), row, tokens[index])
        if "pixel_values" in row:
            assert error(truth(name, row, tokens[index], alpha, gamma, beta=0), bare) > 1e-3
        else:
            assert error(want, bare) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_neutral_settings_keep_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    bare = generated(model, inputs)
    with la.wrap(model, la.PAI(alpha=0, gamma=1)) as lvlm:
        assert lvlm.interventions == ()
        for run in (model, lvlm):
            assert torch.equal(generated(run, inputs)[1], bare[1])
    with la.wrap(model, la.PAI(gamma=1)):
        assert not torch.equal(generated(model, inputs)[1], bare[1])


@pytest.mark.parametrize("name", FEW)
def test_without_guidance_plain_generate_is_enough(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    with la.wrap(model, la.PAI(gamma=1)) as lvlm:
        assert torch.equal(generated(model, inputs)[1], generated(lvlm, inputs)[1])
        plain = model(**inputs).logits
        assert lvlm.report().rows[0][0]["layer"] == 2
        assert lvlm.report().rows[0][0]["rows_amplified"] > 0
    bare = model(**inputs).logits
    assert torch.equal(plain[:, :-1], bare[:, :-1])  # the last row of the prompt alone
    assert torch.equal(plain[2], bare[2])  # not of a sample without an image
    assert not torch.equal(plain[0, -1], bare[0, -1])


def test_with_guidance_plain_generate_is_refused():
    model = model_of("llava")
    with la.wrap(model, la.PAI()), pytest.raises(la.UnsupportedError, match=r"PAI .*lvlm\.generate"):
        model.generate(**tiny_inputs("llava", model, BATCH))


def test_guidance_alone_leaves_the_attention_alone(monkeypatch):
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    edited = []
    attend = registry.attend_edited
    monkeypatch.setattr(registry, "attend_edited", lambda *given: edited.append(given) or attend(*given))
    for alpha, edits in ((0, False), (0.5, True)):
        with la.wrap(model, la.PAI(alpha=alpha, gamma=1.5)) as lvlm:
            generated(lvlm, inputs)
        assert bool(edited) == edits


@pytest.mark.parametrize("name", FEW)
def test_the_view_without_images_is_not_amplified(name):
    """Its logits are those of the bare model on the words alone."""
    seen = []

    class Reads(la.PAI):
        def fuse(self, main, views, step):
            seen.append(views[0])
            return main

    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, Reads(alpha=0.9, gamma=2)) as lvlm:
        tokens, _ = generated(lvlm, inputs)
    for index, row in enumerate(rows):
        want = full_logits(double(name), without_images(row), tokens[index])
        assert error(torch.stack(seen)[:, index], want) < 2e-5


@pytest.mark.parametrize("gamma", [1, 1.3])
@pytest.mark.parametrize("name", FEW)
def test_batch_rows_equal_single_rows_and_nothing_is_left_of_the_sample_before(name, gamma):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.PAI(gamma=gamma), no_image="pass") as lvlm:
        tokens, logits = generated(lvlm, inputs)
        for index, row in enumerate(rows):
            single, alone = generated(lvlm, row)
            assert torch.equal(single[0], tokens[index])
            assert error(logits[index], alone[0].double()) < 5e-5
        assert torch.equal(generated(lvlm, inputs)[1], logits)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
@pytest.mark.parametrize("gamma", [1, 1.3])
def test_caches(gamma, options):
    model = model_of("llava_next")
    inputs = tiny_inputs("llava_next", model, BATCH)
    with la.wrap(model, la.PAI(gamma=gamma)) as lvlm:
        want = generated(lvlm, inputs)[1]
        assert error(generated(lvlm, inputs, **options)[1], want.double()) < 2e-5


def test_a_prompt_read_in_pieces_is_refused():
    model = model_of("llava")
    inputs = tiny_rows("llava", model, [(1, 3, 12)])[0]
    with (
        la.wrap(model, la.PAI(gamma=1)),
        pytest.raises(la.UnsupportedError, match=r"PAI .*prefill_chunk_size"),
    ):
        generated(model, inputs, prefill_chunk_size=7)


@pytest.mark.parametrize("name", FEW)
def test_an_exception_leaves_the_model_as_it_was(name):
    check_an_exception_restores(name, BATCH, la.PAI)


def test_layers():
    model, small = model_of("llava"), tiny_model("llava", layers=2)
    for wrapped, given, want in (
        (model, None, (2, 3)),
        (small, None, (0, 1)),
        (model, "0..1", (0, 1)),
    ):
        with la.wrap(wrapped, la.PAI(layers=given)) as lvlm:
            assert lvlm.interventions[0].layers == want
    with pytest.raises(la.LvlmAttnError, match="layer 9"), la.wrap(model, la.PAI(layers=9)):
        pass


@pytest.mark.parametrize(
    ("given", "word"), [({"alpha": -1}, "alpha"), ({"beta": 2}, "beta"), ({"gamma": "a"}, "gamma")]
)
def test_parameters_out_of_range(given, word):
    with pytest.raises(la.LvlmAttnError, match=f"PAI: {word}"):
        la.PAI(**given)


def test_written_form():
    text = "pai:alpha=0.5,gamma=2.0,layers=[2..5]"
    assert la.parse(str(la.parse(text)[0])) == la.parse(text)
    assert la.parse("pai") == (la.PAI(),)
