"""The attention backend set anew inside a wrap: interventions go on acting, and what the user set stays."""

import copy

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.runtime.vision_reader import encoder_attentions
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

BATCH = [(1,), (2,)]
METHODS = [
    la.VAR(sink_dims=(3,), **VAR),
    la.PAI(alpha=0.5, gamma=1.0),
    la.PAINT(layers=(0, 1)),
    la.MMA(),
    la.VHR(layers=(0, 1)),
]
titles = pytest.mark.parametrize("item", METHODS, ids=lambda item: item.title)


def everywhere(model):
    model.set_attn_implementation("eager")


def in_the_configuration(model):
    model.config._attn_implementation = "eager"


def of_the_decoder(model):
    model.set_attn_implementation({"text_config": "eager"})


def on_the_decoder(model):
    model.model.language_model.set_attn_implementation("eager")


WAYS = (everywhere, in_the_configuration, of_the_decoder, on_the_decoder)


def backends(model):
    return {
        path: module.config._attn_implementation
        for path, module in model.named_modules()
        if hasattr(module, "config")
    }


def logits(model, inputs, item):
    with torch.no_grad(), la.wrap(model, item) as lvlm:
        return said(lvlm, model, inputs, item)


def said(lvlm, model, inputs, item):
    if not item.needs_request():
        return model(**inputs).logits
    options = {
        "max_new_tokens": 2,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    return torch.stack(lvlm.generate(**inputs, **options).logits)


@titles
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_set_inside_the_block_it_acts_on_the_new_backend(name, item):
    model = tiny_model(name, layers=2)
    inputs, eager = tiny_inputs(name, model, BATCH), tiny_model(name, layers=2, attn="eager")
    want = logits(eager, inputs, item)
    assert not torch.equal(want, logits(eager, inputs, la.VAR(removed_fraction=0)))
    for way in WAYS:
        changed, reference = copy.deepcopy(model), copy.deepcopy(model)
        with torch.no_grad(), la.wrap(changed, item) as lvlm:
            way(changed)
            assert torch.allclose(said(lvlm, changed, inputs, item), want, 1e-5, 1e-5), way.__name__
            assert lvlm.report().backend == "eager"
        way(reference)
        assert backends(changed) == backends(reference), way.__name__


def test_set_inside_nested_wraps_and_left_in_any_order():
    model = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", model, BATCH)
    one, two = METHODS[0], METHODS[4]
    eager = tiny_model("llava", layers=2, attn="eager")
    for order in ((0, 1), (1, 0)):
        model.set_attn_implementation("sdpa")
        wraps = [la.wrap(model, one), la.wrap(model, two)]
        for wrapped in wraps:
            wrapped.__enter__()
        model.set_attn_implementation("eager")
        wraps[order[0]].__exit__(None, None, None)
        with torch.no_grad():
            got = model(**inputs).logits
        assert torch.allclose(got, logits(eager, inputs, (one, two)[order[1]]), 1e-5, 1e-5)
        wraps[order[1]].__exit__(None, None, None)
        assert set(backends(model).values()) == {"eager"}


def test_set_before_a_generate_that_makes_the_mask_ahead():
    model, eager = tiny_model("llava", layers=2), tiny_model("llava", layers=2, attn="eager")
    inputs = tiny_inputs("llava", model, BATCH)
    options = {"max_new_tokens": 3, "do_sample": False, "cache_implementation": "static"}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad(), la.wrap(eager, METHODS[0]):
        want = torch.stack(eager.generate(**inputs, **options).logits)
    with torch.no_grad(), la.wrap(model, METHODS[0]):
        model.generate(**inputs, **options)
        model.set_attn_implementation("eager")
        assert torch.allclose(torch.stack(model.generate(**inputs, **options).logits), want, 1e-5, 1e-5)


def test_a_backend_without_masks_is_refused_at_the_next_forward():
    model = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad(), la.wrap(model, METHODS[0]):
        model.config.text_config._attn_implementation_internal = "maskless"
        with pytest.raises(la.UnsupportedError, match="'maskless' has no mask function"):
            model(**inputs)
    assert model.config.text_config._attn_implementation == "maskless"


def test_set_in_the_encoder_while_it_is_read():
    model = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad(), la.wrap(model, METHODS[2]):
        model(**inputs)
        model.set_attn_implementation({"vision_config": "eager"})
        model(**inputs)
        assert encoder_attentions(model.model.vision_tower)[0].config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "eager"
    assert model.config.text_config._attn_implementation == "sdpa"


def test_models_that_share_a_configuration_do_not_disturb_each_other():
    first = tiny_model("llava", layers=2)
    second = type(first)(first.config).eval()
    second.load_state_dict(first.state_dict())
    assert second.config.text_config is first.config.text_config
    inputs = tiny_inputs("llava", first, BATCH)
    with torch.no_grad():
        bare, want = second(**inputs).logits, logits(first, inputs, METHODS[0])
        with la.wrap(first, METHODS[0]):
            assert torch.equal(second(**inputs).logits, bare)
            with la.wrap(second, METHODS[0]):
                pass
            assert torch.equal(first(**inputs).logits, want)
        assert first.config.text_config._attn_implementation == "sdpa"


def test_a_model_loaded_with_our_name_gets_it_back():
    model = tiny_model("llava", layers=2, attn="lvlm_attn")
    inputs = tiny_inputs("llava", model, BATCH)
    want = logits(tiny_model("llava", layers=2), inputs, METHODS[0])
    assert torch.equal(logits(model, inputs, METHODS[0]), want)
    assert model.config.text_config._attn_implementation == "lvlm_attn"
