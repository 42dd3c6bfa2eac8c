"""Models that are compiled inside the wrap: every method acts exactly, and no graph ends in attention."""

import copy
import logging
import warnings
from contextlib import contextmanager

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

import lvlm_attn as la
from lvlm_attn.runtime import operators, registry
from lvlm_attn.runtime.active import without_interventions
from lvlm_attn.runtime.changes import Changes
from tests.runtime.every_site import SITES, bare, outcome
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model
from tests.versions import needs_pre_encoding

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = {
    "pai": lambda: [la.PAI(alpha=0.5, gamma=1)],
    "mma": lambda: [la.MMA()],
    "visual_self": lambda: [la.VisualSelf()],
    "var_vhr": lambda: [la.VAR(sink_dims=(3,), **VAR), la.VHR(layers=(0, 1))],
}


@pytest.fixture(scope="module")
def llava():
    model = tiny_model("llava", layers=2)
    return model, tiny_inputs("llava", model, [(1,)])


@pytest.fixture(autouse=True)
def clean():
    logger = logging.getLogger("torch._dynamo")
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()
    logger.setLevel(level)


class Graphs:
    """A backend that keeps what it is given."""

    def __init__(self):
        self.calls = []

    def backend(self, graph, example_inputs):
        self.calls.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def attending(self):
        """For every graph with attention, how many layers of it go through an operator."""
        counts = [sum("lvlm_attn.attend" in name for name in calls) for calls in self.calls]
        assert not any("scaled_dot_product" in name for calls in self.calls for name in calls)
        return [count for count in counts if count]


def steps(model, inputs, **options):
    """The logits of a prompt and of three tokens after it."""
    options |= {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.no_grad():
        return torch.stack(model.generate(**inputs, **{"disable_compile": True} | options).logits)


@contextmanager
def compiled(model, backend, **options):
    """A model with a compiled forward."""
    model.forward = torch.compile(model.forward, backend=backend, **options)
    try:
        yield model
    finally:
        del model.forward


FAMILIES = [("llava", None, [(1,), (2,)]), ("qwen2_vl", "static", [(1,)])]


@needs_pre_encoding
@pytest.mark.parametrize(("family", "cache", "batch"), FAMILIES, ids=lambda value: str(value))
def test_prefill_and_decode_are_a_graph_each(family, cache, batch):
    model = tiny_model(family, layers=2)
    inputs, graphs = tiny_inputs(family, model, batch), Graphs()
    for name, make in METHODS.items():
        with la.wrap(model, *make()):
            want = steps(model, inputs, cache_implementation=cache)
        with la.wrap(model, *make()), compiled(model, graphs.backend):
            assert torch.allclose(steps(model, inputs, cache_implementation=cache), want, 1e-5, 1e-5), name
            known = len(graphs.calls)
            assert torch.allclose(steps(model, inputs, cache_implementation=cache), want, 1e-5, 1e-5), name
            assert len(graphs.calls) == known  # another prompt is served by what there is
    assert set(graphs.attending()) == {2}
    assert not any("attend" in reason for reason in counters["graph_break"])


@pytest.mark.parametrize("way", ["whole", "in_place", "around"])
def test_what_is_compiled_acts_in_the_wraps_that_it_runs_in(llava, way):
    model, inputs = copy.deepcopy(llava[0]), llava[1]
    before, call = bare(model, inputs), None
    for site in ("heads", "frozen") if way == "whole" else ("heads",):
        want = outcome(llava[0], inputs, SITES[site])[0]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compiled in place inside the first wrap, so before the others
            with la.wrap(model, SITES[site]()):
                if call is None and way == "whole":
                    call = torch.compile(model, backend="aot_eager")
                elif call is None and way == "in_place":
                    model.compile(backend="eager")
                    call = model
                elif call is None:
                    call = torch.compile(lambda **given: model(**given), backend="eager")
                assert torch.allclose(call(**inputs).logits, want, 1e-5, 1e-5), site
                assert not torch.equal(want, before)
            assert torch.allclose(call(**inputs).logits, before, 1e-5, 1e-5)
    known = counters["stats"]["unique_graphs"]
    with torch.no_grad(), la.wrap(model, la.VAR(removed_fraction=0)):
        assert torch.allclose(call(**inputs).logits, before, 1e-5, 1e-5)
    assert counters["stats"]["unique_graphs"] == known


CASES = [("sdpa", ("observe", "keys", "read", "modules", "vision")), ("eager", ("weights",))]


@pytest.mark.parametrize(("attention", "sites"), CASES)
def test_sites(llava, attention, sites):
    model, inputs = copy.deepcopy(llava[0]), llava[1]
    model.set_attn_implementation(attention)
    want, got = ([SITES[site]() for site in sites] for _ in range(2))
    with torch.no_grad(), la.wrap(model, *want):
        expected = model(**inputs).logits
    with torch.no_grad(), la.wrap(model, *got), compiled(model, "eager"):
        assert torch.allclose(model(**inputs).logits, expected, 1e-5, 1e-5)
    for one, other in zip(want, got, strict=True):
        assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(one.seen, other.seen, strict=True))


def test_generate_compiles_its_static_steps_to_one_graph(llava):
    model, inputs = copy.deepcopy(llava[0]), llava[1]
    graphs = Graphs()
    config = CompileConfig(backend=lambda *given: graphs.backend(*given), mode=None, fullgraph=True)
    config._compile_all_devices = True
    options = {"cache_implementation": "static", "compile_config": config, "disable_compile": False}
    before = steps(model, inputs, **options)
    plain = len(graphs.calls)
    with la.wrap(model, *METHODS["var_vhr"]()):
        want = steps(model, inputs, cache_implementation="static")
        assert torch.allclose(steps(model, inputs, **options), want, 1e-5, 1e-5)
    assert not torch.allclose(want, before, 1e-5, 1e-5)
    assert [sum("lvlm_attn.attend" in name for name in calls) for calls in graphs.calls[plain:]] == [2]
    assert torch.allclose(steps(model, inputs, **options), before, 1e-5, 1e-5)
    assert len(graphs.calls) == plain + 1  # the bare model's graph serves again


def test_inductor(llava):
    model, inputs = tiny_model("llava", layers=1), llava[1]
    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    items = [*METHODS["pai"](), SITES["heads"]()]
    with la.wrap(model, *items):
        want = steps(model, inputs, cache_implementation="static")
        options = {"cache_implementation": "static", "compile_config": config, "disable_compile": False}
        assert torch.allclose(steps(model, inputs, **options), want, 1e-5, 1e-5)
    assert counters["stats"]["unique_graphs"] == 1


def attended(module, query, mask=None, **more):
    return registry.attend(module, query, query, query, mask, backend="sdpa", scaling=0.5, **more)[0]


def test_what_cannot_be_compiled_says_so(llava):
    model = llava[0]
    module, query = model.model.language_model.layers[0].self_attn, torch.randn(1, 4, 3, 8)
    call = torch.compile(attended, backend="eager")
    with la.wrap(model, SITES["scores"]()):
        with pytest.raises(la.UnsupportedError, match="gradients are wanted"):
            call(module, query.clone().requires_grad_())
        with (
            torch.autocast("cpu", torch.bfloat16),
            pytest.raises(la.UnsupportedError, match="autocast is on"),
        ):
            call(module, query)
        with pytest.raises(la.UnsupportedError, match="no tensor as a mask"):
            call(module, query, mask=object())
        with pytest.raises(la.UnsupportedError, match="hands blocks on"):
            call(module, query, blocks=object())
        with pytest.raises(la.LvlmAttnError, match="was called by itself inside a wrap"):
            call(module, query)
    bare_call = torch.nn.functional.scaled_dot_product_attention(
        query, query, query, is_causal=True, scale=0.5
    )
    assert torch.allclose(call(module, query), bare_call.transpose(1, 2), 1e-6, 1e-6)


CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")


def test_operators_say_what_they_return(llava):
    module = llava[0].model.language_model.layers[0].self_attn
    call = (torch.randn(1, 4, 3, 8), *torch.randn(2, 1, 2, 5, 8).unbind(0), None, [], "eager\nscaling=0.5")

    def check():
        for name in ("attend", "attend_with_weights"):
            operator = getattr(torch.ops.lvlm_attn, name).default
            torch.library.opcheck(operator, (*call, operators.number_of(module)), test_utils=CHECKS)

    without_interventions(check)


def test_a_graph_that_goes_past_a_site_is_an_error(llava, monkeypatch):
    model, inputs = tiny_model("llava", layers=1), llava[1]
    monkeypatch.setattr(Changes, "_describe", lambda self: None)  # graphs cannot tell hooks apart any more
    call = torch.compile(model, backend="eager")
    monkeypatch.setattr(operators, "STRUCTURE", operators.NUMBER)
    with torch.no_grad():
        with la.wrap(model, SITES["scores"]()):
            call(**inputs)
        with (
            la.wrap(model, SITES["heads"]()),
            pytest.raises(la.LvlmAttnError, match="was not reached"),
        ):
            call(**inputs)
