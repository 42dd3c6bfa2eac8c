"""Every site acts through whatever stands around a model: adapters, accelerate's hooks, offloaded weights."""

import copy

import accelerate
import peft
import pytest
import torch

import lvlm_attn as la
from lvlm_attn.families.unwrap import unwrapped
from tests.oracle_setup import sink_model
from tests.runtime.every_site import CHANGES, SITES, bare, outcome
from tests.test_composition import METHODS, scores
from tests.tiny import tiny_inputs, tiny_model

# PEFT asks for it, by a name that transformers has given up.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

BATCH = [(1,), (2,)]
NAMES = ("llava",)


def with_adapter(model, folder):
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)).eval()


def with_decoder_adapter(model, folder):
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2)
    model.model.language_model = peft.get_peft_model(model.model.language_model, config).eval()
    return model


def dispatched(model, folder):
    places = {f"model.{name}": "cpu" for name, _ in model.model.named_children()} | {"lm_head": "cpu"}
    return accelerate.dispatch_model(model, places, main_device="cpu", force_hooks=True)


def cpu_offloaded(model, folder):
    return accelerate.cpu_offload(model, torch.device("cpu"))


def disk_offloaded(model, folder):
    return accelerate.disk_offload(model, str(folder), torch.device("cpu"))


AROUND = (with_adapter, with_decoder_adapter, dispatched, cpu_offloaded, disk_offloaded)


@pytest.fixture(scope="module", params=NAMES)
def plain(request):
    model = tiny_model(request.param, layers=2)
    inputs = tiny_inputs(request.param, model, BATCH)
    return model, inputs, {name: outcome(model, inputs, kind) for name, kind in SITES.items()}


@pytest.mark.parametrize("around", AROUND)
def test_every_site_acts_as_on_the_model_itself(plain, around, tmp_path):
    model, inputs, want = plain
    before = bare(model, inputs)
    model = around(copy.deepcopy(model), tmp_path)
    hooks = {path: len(module._forward_pre_hooks) for path, module in model.named_modules()}
    assert torch.equal(bare(model, inputs), before)
    for name, kind in SITES.items():
        got = outcome(model, inputs, kind)
        assert len(got) == len(want[name]) >= 1
        assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(got, want[name], strict=True)), name
        if name in CHANGES and name != "views":
            assert not torch.equal(got[0], before), name
        assert torch.equal(bare(model, inputs), before), name
    assert hooks == {path: len(module._forward_pre_hooks) for path, module in model.named_modules()}


def test_dola_acts_on_a_model_with_an_adapter(plain):
    model, inputs, _ = plain
    adapted = with_adapter(copy.deepcopy(model), None)
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    said = []
    for one in (model, adapted):
        with torch.no_grad(), la.wrap(one, la.DoLa(layers=(0, 1))):
            said += [one(**inputs).logits, torch.stack(one.generate(**inputs, **options).logits)]
    assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(said[:2], said[2:], strict=True))
    assert not torch.equal(said[0], bare(model, inputs))


def test_unwrapping_finds_the_model_itself(plain):
    model, _, _ = plain
    assert unwrapped(model) is model
    inner = copy.deepcopy(model)
    assert unwrapped(with_adapter(inner, None)) is inner
    assert unwrapped(torch.compile(inner, backend="eager")) is inner


def test_a_plain_forward_of_offloaded_tiles_and_newlines():
    model = tiny_model("llava_next", layers=2)
    inputs = tiny_inputs("llava_next", model, BATCH)
    offloaded = cpu_offloaded(copy.deepcopy(model), None)
    said = []
    for one in (model, offloaded):
        with torch.no_grad(), la.wrap(one, la.VHR(layers=(0, 1)), la.FrozenVisual(layers=(1,))):
            said.append(one(**inputs).logits)
    assert torch.equal(*said)
    assert not torch.equal(said[0], bare(model, inputs))


OFFLOADED = sorted(set(METHODS) - {"AGLA", "CARVE", "CARVEAttention"})


@pytest.mark.parametrize("names", [*[(name,) for name in OFFLOADED], ("VAR", "VHR", "AGLA"), ("CARVE",)])
def test_every_method_acts_on_offloaded_weights(names):
    model = sink_model("llava")
    want = scores(model, names)
    offloaded = cpu_offloaded(copy.deepcopy(model), None)
    assert torch.allclose(scores(offloaded, names), want, 1e-4, 1e-5)
