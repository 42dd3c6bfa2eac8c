"""Models that are compiled inside the wrap: every method acts exactly, and no graph ends in attention."""

import copy
import logging
import warnings
from contextlib import ExitStack, contextmanager

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import CompileConfig

import lvlm_attn as la
from lvlm_attn.runtime import operators
from lvlm_attn.runtime.changes import Changes
from tests.runtime.every_site import SITES, bare, outcome
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

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
    for site in sites:
        torch.compiler.reset()
        want, got = (SITES[site]() for _ in range(2))
        said = []
        for item, backend in ((want, None), (got, "eager")):
            with torch.no_grad(), la.wrap(model, item), ExitStack() as stack:
                if backend:
                    stack.enter_context(compiled(model, backend))
                said.append(model(**inputs).logits)
        assert torch.allclose(*said, 1e-5, 1e-5), site
        assert all(torch.allclose(a, b, 1e-5, 1e-5) for a, b in zip(want.seen, got.seen, strict=True)), site


def test_generate_compiles_its_static_steps_to_one_graph(llava):
    model, inputs = llava
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
    items = METHODS["var_vhr"]()[:1]
    with la.wrap(model, *items):
        want = steps(model, inputs, cache_implementation="static")
    with la.wrap(model, *items), compiled(model, "inductor"):
        assert torch.allclose(steps(model, inputs, cache_implementation="static"), want, 1e-5, 1e-5)


def test_what_cannot_be_compiled_says_so(llava):
    model, inputs = tiny_model("llava", layers=1), llava[1]
    call = torch.compile(model, backend="eager")
    with la.wrap(model, SITES["heads"]()):
        with pytest.raises(la.UnsupportedError, match="gradients are wanted"):
            call(**inputs)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            with pytest.raises(la.UnsupportedError, match="autocast is on"):
                call(**inputs)
        with torch.no_grad():
            got, want = call(**inputs).logits, model(**inputs).logits
    assert torch.allclose(got, want, 1e-5, 1e-5)


def test_a_graph_that_goes_past_a_site_is_an_error(llava, monkeypatch):
    model, inputs = llava
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
