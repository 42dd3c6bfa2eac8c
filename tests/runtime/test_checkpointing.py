"""Gradient checkpointing with a backward pass: the loss and every gradient are those without it, or it is refused."""

import copy

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.hooks.crosslmm.adapter import CrossLMMAdapter
from tests.runtime.every_site import SITES
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

# Newer versions of transformers call it another name.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")

BATCH = [(1,), (2,)]
SAFE = {"use_reentrant": False}


@pytest.fixture(scope="module")
def plain():
    model = tiny_model("llava", layers=4).train()
    inputs = tiny_inputs("llava", model, BATCH)
    return model, inputs


def adapter(model):
    torch.manual_seed(0)
    found = CrossLMMAdapter.for_model(model, K=2)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            parameter.fill_(0.5) if "gate" in name else parameter.add_(0.05 * torch.randn_like(parameter))
    return found


METHODS = {
    "mma": lambda: [la.MMA()],
    "var": lambda: [la.VAR(sink_dims=(3,), **VAR)],
    "vhr": lambda: [la.VHR(layers=(0, 1, 2))],
    "dola": lambda: [la.DoLa(layers=(0, 2))],
    "paint": lambda: [la.PAINT(layers=(0, 1, 2), rows="all_text")],
    "visual_self": lambda: [la.VisualSelf()],
    "frozen_visual": lambda: [la.FrozenVisual(layers=(0, 2))],
    "hollow": lambda: [la.Hollow(window=1)],
    "neighborhood": lambda: [la.Neighborhood()],
    "power": lambda: [la.Power(block=2, window=1)],
    "delayed": lambda: [la.Delayed()],
    "vmtc": lambda: [la.VMTC()],
    "cmai": lambda: [la.CMAI()],
    "several": lambda: [la.VAR(sink_dims=(3,), **VAR), la.VHR(layers=(0, 1, 2)), la.MMA(), la.record()],
}


def loss_of(model, inputs):
    """A loss over all logits, minus infinity where a method leaves words out."""
    output = model(**inputs, use_cache=False)
    return output.logits.clamp(min=-30).pow(2).mean() if output.loss is None else output.loss


def trained(model, inputs, items, *, checkpoint, more=(), steps=1):
    """The loss of a step, the gradients of all parameters, and the report."""
    model = copy.deepcopy(model)
    if checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=SAFE)
    losses = []
    with la.wrap(model, *items) as lvlm:
        for step in range(steps):  # two prompts, then one backward pass
            shifted = {**inputs, "pixel_values": inputs["pixel_values"] * (1 + step)}
            losses.append(loss_of(model, shifted))
        torch.stack(losses).sum().backward()
        report = lvlm.report().to_dict()
    parameters = [*model.named_parameters(), *more]
    return losses, {name: p.grad for name, p in parameters if p.grad is not None}, report


def check(got, want):
    assert torch.allclose(torch.stack(got[0]), torch.stack(want[0]), 1e-6, 1e-6)
    assert got[1].keys() == want[1].keys()
    assert len(want[1]) > 20
    for name, gradient in want[1].items():
        assert torch.allclose(got[1][name], gradient, 1e-4, 1e-6), name
    assert str(got[2]) == str(want[2])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_exact(plain, name):
    want = trained(*plain, METHODS[name](), checkpoint=False, steps=2)
    assert not torch.allclose(want[0][0], trained(*plain, [], checkpoint=False)[0][0], 1e-6, 1e-6)
    check(trained(*plain, METHODS[name](), checkpoint=True, steps=2), want)


@pytest.mark.parametrize("name", sorted(set(SITES) - {"views", "generated"}))
def test_every_site_is_exact(plain, name):
    items = [SITES[name](), SITES[name]()]
    want = trained(*plain, items[:1], checkpoint=False)
    check(trained(*plain, items[1:], checkpoint=True), want)


def test_mma_is_exact_with_the_loss_of_an_answer(plain):
    model, inputs = plain
    labels = inputs["input_ids"].clone()
    labels[:, :-3] = -100
    found = [
        trained(model, {**inputs, "labels": labels}, [la.MMA()], checkpoint=one) for one in (False, True)
    ]
    check(found[1], found[0])


def test_an_adapter_in_training(plain):
    found = []
    for checkpoint in (False, True):
        own = adapter(plain[0])
        items, more = [la.CrossLMM(adapter=own)], list(own.named_parameters())
        found.append(trained(*plain, items, checkpoint=checkpoint, more=more, steps=2))
    check(found[1], found[0])
    assert any("t2v" in name or "gate" in name for name in found[0][1])


def test_a_backward_pass_after_the_block_is_refused(plain):
    model, inputs = copy.deepcopy(plain[0]), plain[1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=SAFE)
    with la.wrap(model, la.MMA()):
        loss = loss_of(model, inputs)
    with pytest.raises(la.LvlmAttnError, match="call backward\\(\\) inside the block"):
        loss.backward()
    model.zero_grad()
    loss_of(model, inputs).backward()  # and without a wrap it is the model's own affair


def test_checkpointing_that_cuts_the_graph_is_refused(plain):
    model, inputs = copy.deepcopy(plain[0]), plain[1]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    before = [layer._gradient_checkpointing_func for layer in model.model.language_model.layers]
    with la.wrap(model, la.MMA()), pytest.raises(la.UnsupportedError, match="'use_reentrant': False"):
        model(**inputs, use_cache=False)
    after = [layer._gradient_checkpointing_func for layer in model.model.language_model.layers]
    assert all(a is b for a, b in zip(before, after, strict=True))
    with torch.no_grad(), la.wrap(model, la.MMA()):
        model(**inputs, use_cache=False)


def test_enabled_inside_the_block_it_is_exact_and_stays(plain):
    model, inputs = copy.deepcopy(plain[0]), plain[1]
    want = trained(*plain, [la.VHR(layers=(0, 1))], checkpoint=False)
    with la.wrap(model, la.VHR(layers=(0, 1))):
        with torch.no_grad():
            model(**inputs, use_cache=False)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=SAFE)
        chosen = model.model.language_model.layers[0]._gradient_checkpointing_func
        loss = loss_of(model, inputs)
        loss.backward()
    assert torch.allclose(loss, want[0][0], 1e-6, 1e-6)
    assert model.model.language_model.layers[0]._gradient_checkpointing_func is chosen
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, want[1][name], 1e-4, 1e-6), name
