"""What is decided once for an answer: the plans of its layers, and hooks that rest while it is decoded."""

from unittest.mock import patch

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions import Amplification
from lvlm_attn.interventions.sites import in_prompts
from lvlm_attn.runtime.planned import Planned
from tests.oracle_setup import DIM, generate, make_sinks
from tests.runtime.watched_plans import watched
from tests.tiny import tiny_inputs, tiny_model

LAYERS = 2
ONE, PADDED = [(1, 2, 3)], [(1, 2, 3), (0, 2, 2)]
TOKENS = 4


class Alternating(la.Intervention):
    """Amplifies less at every second token: another object at every call, of the same form."""

    def reweigh(self, layer):
        everywhere = torch.ones(layer.layout.batch, layer.call.queries, dtype=torch.bool)
        gain = torch.full((layer.layout.batch, layer.layout.length), 0.5 if layer.call.length % 2 else 0.1)
        return Amplification(everywhere, gain=gain)


def var():
    return la.VAR(tau=0.0, sink_dims=(DIM,), layers="0:", rho=0.0, mass_floor=0.0)


METHODS = {
    "VAR": lambda: [var()],
    "PAI": lambda: [la.PAI(gamma=1, layers="0:")],
    "VAR + PAI": lambda: [var(), la.PAI(gamma=1, layers="1:")],
    "alternating": lambda: [Alternating()],
}


def model():
    return make_sinks(tiny_model("llava", layers=LAYERS))


@pytest.mark.parametrize(
    ("name", "batch"), [("VAR", ONE), ("PAI", PADDED), ("VAR + PAI", PADDED), ("alternating", ONE)]
)
def test_planned_tokens_are_those_of_no_plan(name, batch):
    made = model()
    inputs = tiny_inputs("llava", made, batch)
    done, watching = watched(Planned)
    with watching, la.wrap(made, *METHODS[name](), kernels="triton") as lvlm:
        ids, logits = generate(made, inputs, TOKENS)
        rows = lvlm.report().rows
    # The first token comes of the prompt, and the second one makes the plans.
    assert sum(done) == (0 if name == "alternating" else LAYERS * (TOKENS - 2))
    with (
        patch.object(Planned, "attend", lambda *given: None),
        la.wrap(made, *METHODS[name](), kernels="triton") as lvlm,
    ):
        other_ids, others = generate(made, inputs, TOKENS)
        assert lvlm.report().rows == rows
    assert torch.equal(ids, other_ids)
    assert torch.equal(logits, others)
    with la.wrap(made, *METHODS[name](), kernels="torch"):
        assert torch.allclose(generate(made, inputs, TOKENS)[1], logits, rtol=0, atol=1e-4)


def test_plans_end_with_the_prompt_and_with_the_wrap():
    made = model()
    short, long = (tiny_inputs("llava", made, [(1, 2, words)]) for words in (2, 5))
    with la.wrap(made, var(), kernels="triton"):
        alone = generate(made, long, TOKENS)[1]
    with la.wrap(made, var(), kernels="triton") as lvlm:
        session = lvlm._session
        generate(made, short, TOKENS)
        before = session._prompt.plans
        assert sorted(before) == list(range(LAYERS))
        assert torch.equal(generate(made, long, TOKENS)[1], alone)
        after = session._prompt.plans
        assert all(after[layer] is not before[layer] for layer in before)
    assert not session._prompt.plans


def test_what_was_not_planned_for_is_computed_anew():
    """Other types, strides, and gradients in the middle of an answer."""
    made = model()
    inputs = tiny_inputs("llava", made, ONE)

    def answer(change):
        with la.wrap(made, var(), kernels="auto" if change == "torch" else "triton"), torch.no_grad():
            found = made(**inputs, use_cache=True)
            for step in range(4):
                token = found.logits[:, -1:].argmax(-1)
                if change == "double" and step == 2:
                    made.double()
                    for layer in found.past_key_values.layers:
                        layer.keys, layer.values = layer.keys.double(), layer.values.double()
                with torch.set_grad_enabled(change == "grad" and step == 2):
                    found = made(input_ids=token, past_key_values=found.past_key_values)
        made.float()
        return found.logits.detach()

    want = answer("torch")
    assert torch.allclose(answer("none"), want, rtol=0, atol=1e-4)
    for change in ("double", "grad"):
        with pytest.warns(RuntimeWarning, match="kernels are not used"):
            found = answer(change)
        assert torch.allclose(found.float(), want, rtol=0, atol=1e-4), change


class Looks(la.Intervention):
    def observe(self, layer, hidden):
        layer.stats.setdefault("seen", []).append((layer.index, hidden.shape[1]))


class LooksAtPrompts(Looks):
    @in_prompts
    def observe(self, layer, hidden):
        super().observe(layer, hidden)


def hooks_on(made):
    return [len(layer._forward_pre_hooks) for layer in made.model.language_model.layers]


@pytest.mark.parametrize(("item", "asked"), [(Looks(), TOKENS), (LooksAtPrompts(), 1)])
def test_only_marked_hooks_rest(item, asked):
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    with la.wrap(made, item) as lvlm:
        for turn in (1, 2):
            generate(made, inputs, TOKENS)
            ((_, state),) = lvlm._session.editors
            assert len(state.stats["seen"]) == turn * asked * LAYERS
            assert hooks_on(made) == [int(asked > 1)] * LAYERS
    assert hooks_on(made) == [0] * LAYERS


def test_hooks_come_back_where_they_were():
    """Before what the user put on later, in every prompt."""
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    order = []

    class Notes(la.Intervention):
        @in_prompts
        def observe(self, layer, hidden):
            order.append("ours")

    first = made.model.language_model.layers[0]
    with la.wrap(made, Notes()):
        handle = first.register_forward_pre_hook(lambda module, args: order.append("theirs"))
        for _ in range(2):
            order.clear()
            generate(made, inputs, 2)
            assert order == [
                "ours",
                "theirs",
                *["ours"] * (LAYERS - 1),
                "theirs",
            ]  # the prompt, and one token
        handle.remove()


def generate_twice(made, inputs):
    for _ in range(2):
        generate(made, inputs, TOKENS)


def test_an_interrupt_while_hooks_change_is_made_good():
    made = model()
    inputs = tiny_inputs("llava", made, ONE)
    with la.wrap(made, var()):
        want = generate(made, inputs, TOKENS)
    with la.wrap(made, var()) as lvlm:
        hooks = lvlm._session._hooks
        rest, resting = hooks.rest, hooks._resting
        for asked in (True, False):

            def cut(is_resting, asked=asked):
                if is_resting is asked:
                    hooks._resting = resting[:1]
                    rest(is_resting)
                    hooks._resting = resting
                    raise KeyboardInterrupt
                rest(is_resting)

            with patch.object(hooks, "rest", cut), pytest.raises(KeyboardInterrupt):
                generate_twice(made, inputs)
            found = generate(made, inputs, TOKENS)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, want))
    assert hooks_on(made) == [0] * LAYERS
