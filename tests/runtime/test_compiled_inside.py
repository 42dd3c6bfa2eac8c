"""Models that are compiled inside the wrap: every method acts exactly, and no graph ends in attention."""

import copy
import logging

import pytest
import torch
from torch._dynamo.utils import counters

import lvlm_attn as la
from tests.runtime.every_site import SITES, bare, outcome
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

METHODS = {
    "var": lambda: [la.VAR(sink_dims=(3,), **VAR)],
    "pai": lambda: [la.PAI(alpha=0.5, gamma=1)],
    "mma": lambda: [la.MMA()],
    "visual_self": lambda: [la.VisualSelf()],
    "var_vhr": lambda: [la.VAR(sink_dims=(3,), **VAR), la.VHR(layers=(0, 1))],
}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def plain(request):
    model = tiny_model(request.param, layers=2)
    return model, tiny_inputs(request.param, model, [(1,)])


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

    def __call__(self, graph, example_inputs):
        self.calls.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def attending(self):
        """For every graph with attention, how many layers of it are edited."""
        return [
            sum("lvlm_attn.attend" in name for name in calls)
            for calls in self.calls
            if "attend" in str(calls)
        ]


def steps(model, inputs, kind):
    """The logits of a prompt and of three tokens after it."""
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    options |= {"cache_implementation": "static"} if kind == "static" else {}
    with torch.no_grad():
        return torch.stack(model.generate(**inputs, **options, disable_compile=True).logits)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prefill_and_decode_in_one_graph_of_all_layers(plain, kind):
    model, inputs = plain
    graphs = Graphs()
    before = model.forward
    for name, make in METHODS.items():
        with la.wrap(model, *make()):
            want = steps(model, inputs, kind)
        with la.wrap(model, *make()):
            model.forward = torch.compile(before, backend=graphs)
            got = steps(model, inputs, kind)
            known = len(graphs.calls)
            again = steps(model, inputs, kind)
            del model.forward
        assert torch.allclose(got, want, 1e-5, 1e-5), name
        assert torch.allclose(again, want, 1e-5, 1e-5), name
        assert len(graphs.calls) == known  # one graph serves every prompt
    assert set(graphs.attending()) == {2}
    assert not any("attend" in reason for reason in counters["graph_break"])


WAYS = {
    "whole": lambda model: torch.compile(model, backend="aot_eager"),
    "in_place": lambda model: model.compile(backend="aot_eager") or model,
    "around": lambda model: torch.compile(lambda **inputs: model(**inputs), backend="aot_eager"),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_of_compiling(llava, way):
    model, inputs = copy.deepcopy(llava[0]), llava[1]
    before = bare(model, inputs)
    want = outcome(model, inputs, SITES["heads"])[0]
    with torch.no_grad(), la.wrap(model, SITES["heads"]()):
        call = WAYS[way](model)
        got = call(**inputs).logits
    assert torch.allclose(got, want, 1e-5, 1e-5)
    assert not torch.equal(want, before)
    with torch.no_grad():  # nothing of the wrap is left in what was compiled
        assert torch.allclose(call(**inputs).logits, before, 1e-5, 1e-5)
    for other in ("heads", "frozen", "scores", "observe"):
        want = outcome(llava[0], inputs, SITES[other])
        with torch.no_grad(), la.wrap(model, SITES[other]()):
            assert torch.allclose(call(**inputs).logits, want[0], 1e-5, 1e-5), other
