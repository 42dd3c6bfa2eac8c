"""A wrap that fails while it is being put on leaves the model as it was, whichever step fails."""

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.errors import UnsupportedError
from lvlm_attn.runtime import session
from lvlm_attn.runtime.transformers_private import attention_of, set_attention_of
from tests.runtime.test_lifecycle import state
from tests.tiny import tiny_inputs, tiny_model


class Everywhere(la.Intervention):
    """Has a site of every kind that is installed."""

    def observe(self, layer, hidden):
        return None

    def scale_heads(self, layer, heads):
        return None

    def edit_weights(self, layer, weights):
        return weights

    def edit_logits(self, context, logits):
        return None

    def generated(self, ended, state):
        return None


def raising(real, at):
    """A function that raises when it is called for the `at`-th time."""
    count = 0

    def call(*args, **kwargs):
        nonlocal count
        count += 1
        if count == at:
            raise RuntimeError("broken on purpose")
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("is_nested", [False, True], ids=["alone", "inside another wrap"])
@pytest.mark.parametrize(
    ("step", "at"),
    [
        ("Changes.join", 1),
        ("probe", 1),
        ("install_layer_hooks", 1),
        ("install_layer_hooks", 5),
        ("GenerateWatch", 1),
        ("GenerateWatch.install", 1),
    ],
)
def test_a_step_of_the_installation_fails(step, at, is_nested, monkeypatch):
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,), (2,)])
    with torch.no_grad():
        bare = model(**inputs).logits
        outside = state(model)
        with la.wrap(model, *[la.PAI(alpha=0.5, gamma=1.0)] * is_nested):
            want, before = model(**inputs).logits, state(model)
            with monkeypatch.context() as patch:
                owner, _, name = f"session.{step}".rpartition(".")
                owner = session if owner == "session" else getattr(session, owner.removeprefix("session."))
                replacement = raising(getattr(owner, name), at)
                patch.setattr(
                    owner, name, staticmethod(replacement) if owner is session.Changes else replacement
                )
                with pytest.raises(RuntimeError, match="on purpose"), la.wrap(model, Everywhere()):
                    raise AssertionError("the block was entered")
            assert state(model) == before
            assert torch.equal(model(**inputs).logits, want)
        assert state(model) == outside
        assert torch.equal(model(**inputs).logits, bare)
        with la.wrap(model, Everywhere()):  # and it can be entered afterwards
            model(**inputs)
        assert state(model) == outside


def test_a_backend_without_a_mask_function_is_refused_and_stays():
    model = tiny_model("llava")
    config = model.model.language_model.config
    set_attention_of(config, "somebody_elses")
    before = state(model)
    with pytest.raises(UnsupportedError, match="somebody_elses"), la.wrap(model, la.PAI(gamma=1.0)):
        raise AssertionError("the block was entered")
    assert state(model) == before
    assert attention_of(config) == "somebody_elses"
