"""Settings that do nothing leave every bit of the logits as it is."""

import pytest
import torch

import lvlm_attn as la
from tests.oracle_setup import DIM, TAU, generate, sink_model
from tests.tiny import NAMES, tiny_inputs

BATCH = [(1,), (0,), (2,)]
NEUTRAL = {
    "none": list,
    "var": lambda: [la.VAR(removed_fraction=0, tau=TAU, sink_dims=(DIM,))],
    "var default": lambda: [la.VAR(removed_fraction=0)],
    "vhr": lambda: [la.VHR(alpha=1)],
    "both": lambda: [la.VAR(removed_fraction=0, tau=TAU, sink_dims=(DIM,)), la.VHR(alpha=1)],
}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_neutral_settings_keep_bits(name, attn):
    model = sink_model(name, attn=attn)
    for side in ("left", "right"):
        inputs = tiny_inputs(name, model, BATCH, side)
        with torch.no_grad():
            bare = model(**inputs).logits
            for label, make in NEUTRAL.items():
                with la.wrap(model, *make()):
                    assert torch.equal(model(**inputs).logits, bare), label
            with la.wrap(model, la.VAR(tau=TAU, sink_dims=(DIM,))):
                assert not torch.equal(model(**inputs).logits, bare)  # so the equality can fail


@pytest.mark.parametrize("name", NAMES)
def test_neutral_generation_keeps_bits(name):
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    with torch.no_grad():
        bare_ids, bare = generate(model, inputs, 5)
        for label in ("none", "both"):
            with la.wrap(model, *NEUTRAL[label]()):
                ids, got = generate(model, inputs, 5)
            assert torch.equal(ids, bare_ids)
            assert torch.equal(got, bare)


@pytest.mark.parametrize("name", NAMES)
def test_an_active_method_that_selects_nothing_keeps_bits(name):
    """Nothing is installed for neutral settings; here everything is, and nothing is selected."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, BATCH)
    never = la.VAR(rho=1.0, mass_floor=1.0, tau=TAU, sink_dims=(DIM,))

    class Same(la.Intervention):
        def scale_heads(self, layer, heads):
            return None

        def observe(self, layer, hidden):
            assert hidden.shape[0] == 3

    with torch.no_grad():
        bare_ids, bare = generate(model, inputs, 5)
        with la.wrap(model, never, Same()):
            ids, got = generate(model, inputs, 5)
    assert torch.equal(ids, bare_ids)
    assert torch.equal(got, bare)


@pytest.mark.parametrize("name", ["llava", "qwen3_vl"])
def test_backends_agree(name):
    """The same edit over sdpa and eager; flex needs a compiler and is left to where one is."""
    inputs = tiny_inputs(name, sink_model(name), BATCH)
    edits = [la.VAR(tau=TAU, sink_dims=(DIM,)), la.VHR(layers=(1, 3, 4))]
    results = []
    for attn in ("sdpa", "eager"):
        model = sink_model(name, attn=attn)
        with torch.no_grad(), la.wrap(model, *edits):
            results.append(model(**inputs).logits[:, -1])
    assert (results[0] - results[1]).abs().max() / results[0].abs().max() < 1e-5
