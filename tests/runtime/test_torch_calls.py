"""How often a decoding layer that VAR acts on calls torch, and what becomes of the counts that wait."""

from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lvlm_attn as la
from lvlm_attn.kernels import few_keys
from lvlm_attn.runtime import edits, registry
from tests.tiny import tiny_inputs, tiny_model

MOST = 21


class Calls(TorchDispatchMode):
    """Counts the operators of ATen that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def var(**more):
    return la.VAR(tau=1.5, sink_dims=(1, 5), layers="0:4", **more)


def per_layer(prompts, new_tokens, **more):
    """For each call of attention that VAR acts on: queries, and the operators called in all of it."""
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, prompts)
    seen = []
    attend = registry._attend

    def watched(module, query, *given, **more):
        with Calls() as calls:
            found = attend(module, query, *given, **more)
        seen.append((query.shape[2], calls.names))
        return found

    with (
        patch.object(registry, "_attend", watched),
        la.wrap(model, var(**more)) as lvlm,
        torch.no_grad(),
    ):
        model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return seen, lvlm.report()


def test_a_decoding_layer_makes_few_calls():
    seen, report = per_layer([(1, 9, 40)], few_keys.STEPS + 4)
    steps = [len(names) for queries, names in seen if queries == 1]
    assert len(steps) >= few_keys.STEPS
    assert sorted(steps)[len(steps) // 2] <= MOST
    # With what a step makes for all its layers, and what is listed for the next steps.
    assert sum(steps) / len(steps) <= MOST + 10
    assert any(row["rows_changed"] > 0 for row in report.rows[0])


def test_no_layer_of_a_step_computes_weights_over_all_keys():
    with patch.object(edits, "row_weights", side_effect=AssertionError("few keys are enough")):
        per_layer([(1, 9, 40)], 4)
        per_layer([(1, 3, 8), (1, 9, 30)], 4)  # one padded


def test_counts_are_those_of_all_keys():
    """The same report where every row is computed from all keys."""
    prompts = [(1, 3, 8), (0, 5, 5), (1, 9, 30)]
    _, report = per_layer(prompts, 6, rho=0.1, mass_floor=0.05)
    with patch.object(edits, "may_correct", return_value=False):
        _, want = per_layer(prompts, 6, rho=0.1, mass_floor=0.05)
    assert len(report.rows[0]) == len(want.rows[0])
    for ours, theirs in zip(report.rows[0], want.rows[0]):
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[name] - theirs[name]) < 1e-5 for name in ours)
    assert any(row["rows_changed"] > 0 for row in want.rows[0])
