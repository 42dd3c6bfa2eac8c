"""After a wrap the model is as it was, however the block was left."""

import copy
import gc
import json
import weakref
from contextlib import ExitStack

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import lvlm_attn as la
from tests.oracle_setup import DIM, TAU, generate, make_sinks, sink_model
from tests.tiny import NAMES, tiny_inputs, tiny_model

assert la.wrap  # names are imported on first use, and the registries learn theirs on import, once per process

BATCH = [(1,), (0,), (2,)]


def var(**changes):
    return la.VAR(**{"tau": TAU, "sink_dims": (DIM,)} | changes)


def vhr(**changes):
    return la.VHR(**{"layers": (1, 3, 4)} | changes)


def state(model):
    """Everything a wrap could leave behind."""
    hooks = {}
    for path, module in model.named_modules():
        for attribute, value in vars(module).items():
            if "hooks" in attribute and isinstance(value, dict):
                hooks[path, attribute] = list(value.values())
    backends = {
        path: module.config._attn_implementation
        for path, module in model.named_modules()
        if hasattr(module, "config")
    }
    names = {path: sorted(vars(module)) for path, module in model.named_modules()}
    forwards = {path: type(module).forward for path, module in model.named_modules()}
    return {
        "hooks": hooks,
        "backends": backends,
        "attributes": names,
        "forwards": forwards,
        "attention registry": sorted(ALL_ATTENTION_FUNCTIONS.keys()),
        "mask registry": sorted(ALL_MASK_ATTENTION_FUNCTIONS.keys()),
        "config": model.config.to_json_string(),
        "generation": model.generation_config.to_json_string(),
        "global hooks": len(torch.nn.modules.module._global_forward_pre_hooks),
    }


def warm(name):
    """A model of its own that has run once with `output_attentions`, and what it says."""
    model = make_sinks(tiny_model(name, layers=5, attn="eager"))
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        model(**inputs, output_attentions=True)
        model.set_attn_implementation("sdpa")
        logits = model(**inputs).logits
    return model, inputs, logits


class Break(LogitsProcessor):
    """Raises at the third generated token."""

    def __init__(self, error):
        self.error, self.count = error, 0

    def __call__(self, input_ids, scores):
        self.count += 1
        if self.count == 3:
            raise self.error
        return scores


class Broken(la.Intervention):
    """Raises in the layer that is asked for."""

    layers = (2,)

    def observe(self, layer, hidden):
        raise RuntimeError("broken on purpose")


def leave_normally(model, inputs):
    with la.wrap(model, var(), vhr()):
        model(**inputs)
        generate(model, inputs, 3)


def leave_by_an_exit_stack(model, inputs):
    with ExitStack() as stack:
        lvlm = stack.enter_context(la.wrap(model, var(), vhr()))
        model(**inputs)
        assert len(lvlm.report().rows) == 2
    with pytest.raises(RuntimeError, match="on purpose"), ExitStack() as stack:
        stack.enter_context(la.wrap(model, var(), vhr(), Broken())).model(**inputs)


def leave_by_error_in_a_hook(model, inputs):
    with pytest.raises(RuntimeError, match="on purpose"), la.wrap(model, var(), vhr(), Broken()):
        model(**inputs)


def leave_by_error_in_generate(model, inputs):
    broken = LogitsProcessorList([Break(ValueError("stop here"))])
    with pytest.raises(ValueError, match="stop here"), la.wrap(model, var(), vhr()):
        generate(model, inputs, logits_processor=broken)


def leave_by_interrupt(model, inputs):
    broken = LogitsProcessorList([Break(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt), la.wrap(model, var(), vhr()):
        generate(model, inputs, logits_processor=broken)


def leave_nested(model, inputs):
    with la.wrap(model, var()):
        with la.wrap(model, vhr()):
            model(**inputs)
        model(**inputs)


def leave_in_the_wrong_order(model, inputs):
    outer, inner = la.wrap(model, var()), la.wrap(model, vhr())
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    model(**inputs)
    inner.__exit__(None, None, None)


def leave_two_that_need_attention_in_the_wrong_order(model, inputs):
    """The backend's name in the configuration belongs to both; the last one gives it back."""
    pai = la.PAI(alpha=0.5, gamma=1.0)
    with la.wrap(model, pai):
        want = model(**inputs).logits
    outer, inner = la.wrap(model, var()), la.wrap(model, pai)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(model(**inputs).logits, want)
    third = la.wrap(model, var())
    third.__enter__()
    inner.__exit__(None, None, None)
    assert not torch.equal(model(**inputs).logits, want)
    third.__exit__(None, None, None)


def leave_on_the_way_in(model, inputs):
    with pytest.raises(la.LvlmAttnError), la.wrap(model, var(), vhr(layers=(99,))):
        pass


@pytest.mark.parametrize("name", ["llava", "llava_onevision", "qwen2_vl", "qwen3_vl"])
def test_the_model_is_as_it_was(name):
    model, inputs, logits = warm(name)
    before, weights = state(model), {key: value.clone() for key, value in model.state_dict().items()}
    for leave in (
        leave_normally,
        leave_by_an_exit_stack,
        leave_by_error_in_a_hook,
        leave_by_error_in_generate,
        leave_by_interrupt,
        leave_nested,
        leave_in_the_wrong_order,
        leave_two_that_need_attention_in_the_wrong_order,
        leave_on_the_way_in,
    ):
        with torch.no_grad():
            leave(model, inputs)
            after = state(model)
            for key in before:
                assert after[key] == before[key], f"{leave.__name__}: {key}"
            assert model.state_dict().keys() == weights.keys()
            assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
            assert torch.equal(model(**inputs).logits, logits), leave.__name__


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupt_leaves_every_family_clean(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        logits = model(**inputs).logits
        before = state(model)
        leave_by_interrupt(model, inputs)
        assert state(model) == before
        assert torch.equal(model(**inputs).logits, logits)


def test_nested_wraps_act_together_and_end_apart():
    model = sink_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)

    def logits():
        return model(**inputs).logits

    with torch.no_grad():
        with la.wrap(model, var(), vhr()):
            both = logits()
        with la.wrap(model, var()):
            only_var = logits()
        with la.wrap(model, vhr()):
            only_vhr = logits()
        with la.wrap(model, var()):
            with la.wrap(model, vhr()):
                assert torch.equal(logits(), both)
            assert torch.equal(logits(), only_var)
        outer, inner = la.wrap(model, var()), la.wrap(model, vhr())
        outer.__enter__()
        inner.__enter__()
        assert torch.equal(logits(), both)
        outer.__exit__(None, None, None)
        assert torch.equal(logits(), only_vhr)
        inner.__exit__(None, None, None)
        outer, inner = la.wrap(model, vhr()), la.wrap(model, var())
        outer.__enter__()
        inner.__enter__()
        outer.__exit__(None, None, None)
        assert torch.equal(logits(), only_var)
        inner.__exit__(None, None, None)


def test_the_same_method_twice_is_refused():
    model = sink_model("llava")
    with pytest.raises(la.LvlmAttnError, match="VAR"), la.wrap(model, var(), var(rho=0.8)):
        pass
    with la.wrap(model, vhr()), pytest.raises(la.LvlmAttnError, match="VHR"), la.wrap(model, vhr()):
        pass
    with la.wrap(model, vhr()):  # and it is free again afterwards
        pass


def test_a_wrap_is_entered_once():
    wrapped = la.wrap(sink_model("llava"), var())
    with wrapped, pytest.raises(la.LvlmAttnError, match="again"):
        wrapped.__enter__()
    with pytest.raises(la.LvlmAttnError), wrapped:
        pass


def test_two_models_at_once():
    first, second = sink_model("llava"), sink_model("qwen2_vl")
    a, b = tiny_inputs("llava", first, BATCH), tiny_inputs("qwen2_vl", second, BATCH)
    with torch.no_grad():
        with la.wrap(first, var()):
            want_a = generate(first, a, 4)[1]
        with la.wrap(second, vhr()):
            want_b = generate(second, b, 4)[1]
        with la.wrap(first, var()), la.wrap(second, vhr()):
            assert torch.equal(generate(first, a, 4)[1], want_a)
            assert torch.equal(generate(second, b, 4)[1], want_b)
            assert torch.equal(generate(first, a, 4)[1], want_a)


def test_two_models_of_one_family_keep_their_parameters():
    first, second = sink_model("llava"), copy.deepcopy(sink_model("llava"))
    inputs = tiny_inputs("llava", first, BATCH)
    with torch.no_grad():
        bare = first(**inputs).logits
        with la.wrap(first, vhr(alpha=3.0)):
            three = first(**inputs).logits
            assert torch.equal(second(**inputs).logits, bare)
            with la.wrap(second, vhr(alpha=1.5)):
                assert not torch.equal(second(**inputs).logits, three)
                assert torch.equal(first(**inputs).logits, three)


def test_saving_inside_the_block_leaves_no_trace(tmp_path):
    model = sink_model("llava")
    with la.wrap(model, var(), vhr()):
        model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.json"):
        assert "lvlm_attn" not in json.dumps(json.loads(file.read_text()))
    again = type(model).from_pretrained(tmp_path)
    assert again.config._attn_implementation == "sdpa"


def test_copying_inside_the_block_is_refused():
    model = sink_model("llava")
    with la.wrap(model, var(), vhr()), pytest.raises(la.LvlmAttnError, match="cop"):
        copy.deepcopy(model)
    copy.deepcopy(model)


def test_a_left_wrap_does_not_keep_the_model_alive():
    model = make_sinks(tiny_model("llava"))
    inputs = tiny_inputs("llava", model, BATCH)
    wrapped = la.wrap(model, var(), la.VHR())
    with torch.no_grad(), wrapped:
        model(**inputs)
    watcher = weakref.ref(model)
    del model
    gc.collect()
    assert watcher() is None
    assert str(wrapped.report())


def test_parameters_are_checked_before_anything_changes():
    model = sink_model("llava")
    before = state(model)
    for make in (
        lambda: la.VAR(rho=-0.5),
        lambda: la.VAR(removed_fraction=-0.1),
        lambda: la.VAR(sink_dims=(32,), tau=TAU),
        lambda: la.VAR(layers=(5,)),
        lambda: la.VHR(alpha=-1.0),
        lambda: la.VHR(vhd_power=3),
    ):
        with pytest.raises(la.LvlmAttnError) as caught, la.wrap(model, make()):
            pass
        assert str(caught.value).count("\n") == 0
        assert state(model) == before
    with pytest.raises(la.LvlmAttnError, match="instance"):
        la.wrap(model, la.VAR)
    with pytest.raises(la.LvlmAttnError):
        la.wrap(model, "var")
    with pytest.raises(la.UnsupportedError), la.wrap(torch.nn.Linear(2, 2), vhr()):
        pass
