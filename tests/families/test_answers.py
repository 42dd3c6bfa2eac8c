"""Given answers are followed word for word, whatever a family's own `generate` does with what it is handed."""

from __future__ import annotations

import pytest
import torch

import lvlm_attn as la
from tests.tiny import ALL_NAMES, tiny_inputs, tiny_model


@pytest.mark.parametrize("name", ALL_NAMES)
def test_a_given_answer_is_followed_in_every_family(name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, [(1,), (0,)])
    answers = torch.tensor([[31, 32, 33], [41, 42, 43]])
    for methods in ([], [la.record()], [la.DoLa(layers=(1,))]):
        with torch.no_grad(), la.wrap(model, *methods) as lvlm:
            output = lvlm.generate(**inputs, answers=answers)
        assert torch.equal(output[:, -3:], answers)
    assert "_get_logits_processor" not in vars(model)


@pytest.mark.parametrize("name", ["janus", "llava"])
def test_a_given_answer_is_followed_beside_a_view(name: str) -> None:
    model = tiny_model(name)
    inputs = tiny_inputs(name, model, [(1,), (1,)])
    answers = torch.tensor([[31, 32, 33], [41, 42, 43]])
    with torch.no_grad(), la.wrap(model, la.VCD()) as lvlm:
        output = lvlm.generate(**inputs, answers=answers)
    assert torch.equal(output[:, -3:], answers)
