"""In no layer is a GPU waited for: neither while a prompt is processed nor at any token of the answer.

Here it is shown on the CPU, by what would be waited for (`tests.waiting`); with a GPU, by torch itself.
"""

from collections import Counter

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions.context import Call
from lvlm_attn.kernels.call import Memo
from lvlm_attn.kernels.torch_path import Rows
from lvlm_attn.runtime.remembered import forget_all
from tests.oracle_setup import DIM, TAU, generate, make_sinks
from tests.tiny import tiny_inputs, tiny_model
from tests.waiting import Waits, as_on_a_gpu

BATCHES = {"one": [(1,)], "unequal": [(1,), (0,), (2,)]}


def var(tau=TAU):
    return la.VAR(tau=tau, sink_dims=(DIM,), layers=(1, 2, 3), rho=0.0, mass_floor=0.0)


def vhr():
    return la.VHR(layers=(1, 2, 4))


METHODS = {
    "VAR": lambda: [var()],
    "VHR": lambda: [vhr()],
    "VAR + VHR": lambda: [var(), vhr()],
    "PAI": lambda: [la.PAI(gamma=1)],
    "VAR + PAI": lambda: [var(), la.PAI(gamma=1)],
    "MMA": lambda: [la.MMA()],
    "VisualSelf": lambda: [la.VisualSelf()],
    "VisualSelf, self alone": lambda: [la.VisualSelf(mode="self")],
    "Hollow": lambda: [la.Hollow()],
    "Neighborhood": lambda: [la.Neighborhood()],
    "Power": lambda: [la.Power(block=2, window=1)],
    "Delayed": lambda: [la.Delayed()],
    "FrozenVisual": lambda: [la.FrozenVisual()],
    "record": lambda: [la.record()],
    "record heads": lambda: [la.record(heads=(0, 2), sinks=True)],
    "record the prompt": lambda: [la.record(rows="all", reduce="all")],
    "VAR + record": lambda: [var(), la.record()],
    "VAR + MMA + record": lambda: [var(), la.MMA(), la.record()],
}
PER_PROMPT = {1: 3, 2: 4, 3: 5}
"""For so many methods: a prefill may wait to look at the mask, and once for each set of rows that layers have."""


def model():
    return make_sinks(tiny_model("llava", layers=5))


def waits(tokens, items, batch, kernels="auto"):
    """What would be waited for while some tokens are generated: in layers, and elsewhere."""
    made = model()
    inputs = tiny_inputs("llava", made, batch)
    forget_all()
    found = Waits(made.model.language_model.layers)
    with la.wrap(made, *items, kernels=kernels), found.noted():
        made.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
    return Counter(found.in_layers), Counter(found.elsewhere)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", METHODS)
def test_no_layer_waits(name, batch):
    waits(1, METHODS[name](), BATCHES[batch])  # small tables are brought to a device once in a process
    prefill, around = waits(1, METHODS[name](), BATCHES[batch])
    asked = sum(count for what, count in prefill.items() if not what.startswith("aten::"))
    # The layout brings ids and mask to the host together; VHR compares the text with that of earlier prompts.
    known = {"cpu runtime/prompt_state.py", "cpu runtime/fingerprint.py", "numpy runtime/fingerprint.py"}
    assert "record" in name or {what.rpartition(":")[0] for what in around} <= known
    assert "record" in name or max(around.values()) == 1
    assert asked <= PER_PROMPT[len(METHODS[name]())] + ("heads" in name), prefill
    whole, whole_around = waits(5, METHODS[name](), BATCHES[batch])
    more = whole - prefill
    # Once the first token is there, what VAR found in all layers is read together, once.
    assert sum(more.values()) <= ("VAR" in name), more
    assert "record" in name or not whole_around - around


def test_looking_is_found(monkeypatch):
    class Looks(la.Intervention):
        def scale_heads(self, layer, heads):
            return heads[:, :, [0, 1, 2, 3]] if bool((heads > -9).any()) else None

    # A wait counts as ours where a function of the package asks for it, so this one stands in for one.
    monkeypatch.setattr("tests.waiting._ROOT", __file__.removesuffix("/test_waits.py"))
    found, _ = waits(2, [Looks()], BATCHES["one"])
    names = {what.partition(" ")[0]: count for what, count in found.items()}
    assert names["__bool__"] == names["aten::_local_scalar_dense"] == names["__getitem__"] == 2 * 5


def _near(row):
    return {
        name: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("name", ["VAR", "VAR + VHR", "VAR + PAI", "VAR + MMA + record", "record heads"])
def test_the_ways_of_a_gpu_give_the_same(name):
    """Where nothing may be read, layers without sinks are computed too, and rows are computed whole, not corrected."""
    made = model()
    inputs = tiny_inputs("llava", made, BATCHES["unequal"])
    with la.wrap(made, *METHODS[name]()) as lvlm:
        ids, logits = generate(made, inputs)
        report = lvlm.report()
    with as_on_a_gpu(), la.wrap(made, *METHODS[name]()) as lvlm:
        other_ids, other = generate(made, inputs)
        others = [row for rows in lvlm.report().rows for row in rows]
    assert others == [_near(row) for rows in report.rows for row in rows]
    assert torch.equal(ids, other_ids)
    assert torch.allclose(logits, other, rtol=0, atol=1e-5)


def test_samples_without_sinks_are_left_alone_without_a_look():
    made = tiny_model("llava", layers=5)
    inputs = tiny_inputs("llava", made, BATCHES["unequal"])
    bare = generate(made, inputs)
    with as_on_a_gpu(), la.wrap(made, var(tau=5.6)) as lvlm:  # of at most 5.66
        ids, logits = generate(made, inputs)
        (rows,) = lvlm.report().rows
    assert torch.equal(ids, bare[0])
    assert torch.equal(logits, bare[1])
    assert {row["rows_changed"] for row in rows} == {0}


def test_parts_are_packed_as_their_whole(monkeypatch):
    packed = []
    monkeypatch.setattr(Rows, "of", staticmethod(lambda rows, real=Rows.of: packed.append(1) or real(rows)))
    call = Call.__new__(Call)
    call.memo = Memo()
    whole = torch.tensor([[False, True, True], [True, False, True]])
    keeps = torch.tensor([True, False])
    part = call.part_of(whole, keeps)
    rows, all_rows = call.rows_of(part), call.rows_of(whole)
    assert len(packed) == 1
    assert torch.equal(rows.index, all_rows.index)
    assert rows.is_touched.tolist() == [[True, True], [False, False]]
    assert call.rows_of_any([part, whole]) is all_rows
    assert call.rows_of_any([part, part]) is rows
    other = torch.tensor([[True, False, False], [False, False, False]])
    both = call.rows_of_any([part, other])
    assert call.rows_of_any([call.part_of(whole, ~keeps), other]) is both
    assert len(packed) == 2


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("name", METHODS)
def test_torch_finds_no_wait_in_layers(name, kernels):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    made = model().to("cuda")
    inputs = {key: value.to("cuda") for key, value in tiny_inputs("llava", made, BATCHES["unequal"]).items()}
    layers = made.model.language_model.layers
    forwards = [0]

    def enter(module, args, kwargs):
        forwards[0] += module is layers[0]
        # The prefill may wait for its rows, and the first step for what VAR found.
        torch.cuda.set_sync_debug_mode("error" if forwards[0] > 2 else "default")

    def leave(module, args, output):
        torch.cuda.set_sync_debug_mode("default")

    handles = [layer.register_forward_pre_hook(enter, with_kwargs=True) for layer in layers]
    try:
        with la.wrap(made, *METHODS[name](), kernels=kernels):
            handles += [layer.register_forward_hook(leave) for layer in layers]
            made.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        for handle in handles:
            handle.remove()
    assert forwards[0] == 6
