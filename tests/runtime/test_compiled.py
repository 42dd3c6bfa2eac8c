"""Models that were compiled before the wrap: every method acts exactly."""

import copy

import pytest
import torch

import lvlm_attn as la
from tests.runtime.every_site import SITES, bare, outcome
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

BATCH = [(1,)]
# Guards of torch.compile look into caches of Python functions, and say so.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The model is compiled:RuntimeWarning")

METHODS = {
    "vhr": la.VHR(layers=(0, 1)),
    "frozen_visual": la.FrozenVisual(layers=(0,)),
    "var": la.VAR(sink_dims=(3,), **VAR),
    "dola": la.DoLa(layers=(0, 1)),
}


@pytest.fixture(scope="module")
def plain():
    model = tiny_model("llava", layers=2)
    return model, tiny_inputs("llava", model, BATCH)


@pytest.fixture
def fresh(plain):
    torch.compiler.reset()
    yield copy.deepcopy(plain[0]), plain[1]
    torch.compiler.reset()


def logits(model, inputs, item, call=None):
    with torch.no_grad(), la.wrap(model, item):
        return (call or (lambda: model(**inputs).logits))()


def whole(model):
    return torch.compile(model, backend="eager")


def in_place(model):
    model.compile(backend="eager")
    return model


def forward(model):
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def one_layer(model):
    layers = model.model.language_model.layers
    layers[0] = torch.compile(layers[0], backend="eager")
    layers[1].compile(backend="eager")
    return model


def decoder(model):
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")
    return model


@pytest.mark.parametrize("compiled", [whole, in_place, forward, one_layer, decoder])
def test_a_model_compiled_and_run_before_the_wrap(fresh, plain, compiled):
    model, inputs = fresh
    model = compiled(model)
    before = bare(model, inputs)
    for name, item in METHODS.items():
        want = logits(plain[0], inputs, item)
        assert torch.allclose(logits(model, inputs, item), want, 1e-5, 1e-5), name
        assert not torch.equal(want, before)
    for name, kind in SITES.items() if compiled is decoder else ():
        got, want = outcome(model, inputs, kind), outcome(*plain, kind)
        assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(got, want, strict=True)), name
    calls = torch._dynamo.utils.counters["stats"]["calls_captured"]
    assert torch.equal(bare(model, inputs), before)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] == calls  # what was compiled serves again


def test_wrapping_a_compiled_model_says_that_it_runs_uncompiled(fresh):
    model, _ = fresh
    with (
        pytest.warns(RuntimeWarning, match="inside the block it runs uncompiled"),
        la.wrap(in_place(model), la.VHR()),
    ):
        pass
    assert model._compiled_call_impl is not None


def test_a_function_around_the_model_compiled_before_the_wrap_is_compiled_anew(fresh, plain):
    model, inputs = fresh
    function = torch.compile(lambda: model(**inputs).logits, backend="eager")
    with torch.no_grad():
        before = function()
    for name in ("vhr", "frozen_visual", "vhr"):
        want = logits(*plain, METHODS[name])
        assert torch.allclose(logits(model, inputs, METHODS[name], function), want, 1e-5, 1e-5)
        assert not torch.equal(want, before)
    with torch.no_grad():
        assert torch.equal(function(), before)


def test_wraps_left_in_the_wrong_order_keep_the_model_uncompiled(fresh, plain):
    model, inputs = fresh
    compiled = in_place(model)._compiled_call_impl
    outer, inner = la.wrap(model, METHODS["frozen_visual"]), la.wrap(model, METHODS["vhr"])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits(*plain, METHODS["vhr"]))
    inner.__exit__(None, None, None)
    assert model._compiled_call_impl is compiled
