"""Ctrl-C while a wrap is entered or left, and during image encoding: the model is as it was."""

import gc
import weakref
from contextlib import ExitStack

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.runtime.active import ACTIVE, without_interventions
from lvlm_attn.runtime.vision_reader import READING, encoder_attentions
from tests.interrupts import Interrupt, changes, state
from tests.samples import VAR
from tests.tiny import tiny_inputs, tiny_model

BATCH = [(1,), (2,)]


def several():
    return [
        la.VAR(sink_dims=(3,), **VAR),
        la.VHR(layers=(0, 1)),
        la.PAINT(layers=(0, 1)),
        la.DoLa(layers=(0,)),
    ]


def recorded():
    return [la.FrozenVisual(layers=(0,)), la.CrossLMM.reuse(grid=2, rule="R1", lam=0.3), la.record()]


SETS = pytest.mark.parametrize("make", [several, recorded])


@pytest.fixture(scope="module")
def plain():
    model = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", model, BATCH)
    with torch.no_grad():
        for make in (several, recorded):  # names are registered and modules are imported once per process
            with la.wrap(model, *make()):
                model(**inputs)
        return model, inputs, model(**inputs).logits


def lines_of(function):
    with Interrupt() as counter:
        function()
    return counter.count


@SETS
def test_at_sampled_lines_of_entering(plain, make):
    model, inputs, logits = plain
    before = state(model)
    wrapped = la.wrap(model, *make())
    count = lines_of(wrapped.__enter__)
    wrapped.__exit__(None, None, None)
    assert count > 100
    for line in range(1, count + 1, 7):
        wrapped = la.wrap(model, *make())
        with Interrupt(line) as interrupt, pytest.raises(KeyboardInterrupt), wrapped:
            pass
        assert not changes(before, state(model)), interrupt.place
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def leave(model, inputs, items, interrupt):
    """Leaves a wrap while something counts the lines, or interrupts one of them."""
    try:
        with torch.no_grad(), la.wrap(model, *items):
            model(**inputs)
            interrupt.start()
    finally:
        interrupt.stop()


@pytest.mark.parametrize(("make", "every"), [(several, 4), (recorded, 5)])
def test_at_sampled_lines_of_leaving(plain, make, every):
    model, inputs, logits = plain
    before, counter = state(model), Interrupt()
    leave(model, inputs, make(), counter)
    assert counter.count > 50
    for line in range(1, counter.count + 1, every):
        interrupt = Interrupt(line)
        with pytest.raises(KeyboardInterrupt):
            leave(model, inputs, make(), interrupt)
        assert not changes(before, state(model)), interrupt.place
        assert not ACTIVE.get()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def test_a_second_exit_completes_what_several_interrupts_left(plain):
    model, inputs, logits = plain
    before = state(model)
    for line in range(1, 60, 7):
        wrapped = la.wrap(model, *several())
        with torch.no_grad():
            wrapped.__enter__()
            model(**inputs)
        with Interrupt(line), pytest.raises(KeyboardInterrupt):
            wrapped._restore()
        wrapped.__exit__(None, None, None)
        assert not changes(before, state(model))
        wrapped.__exit__(None, None, None)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, logits)


def encoder_of(model):
    return encoder_attentions(model.model.vision_tower)[0].config


def test_two_readers_of_the_encoder_give_its_attention_back(plain):
    model, inputs, _ = plain
    for nested in (True, False):
        with torch.no_grad(), la.wrap(model, la.PAINT(layers=(0, 1))):
            with la.wrap(model, la.VMTC()) if nested else la.wrap(model):
                model(**inputs)
                assert encoder_of(model)._attn_implementation == "sdpa"
            model(**inputs)
            assert encoder_of(model)._attn_implementation == "sdpa"


class Stop:
    """Raises on its first call."""

    calls = 0

    def __call__(self, *_):
        self.calls += 1
        if self.calls == 1:
            raise KeyboardInterrupt


def test_an_interrupt_during_image_encoding_leaves_nothing_and_pins_nothing():
    model = tiny_model("llava", layers=2)
    inputs = tiny_inputs("llava", model, BATCH)
    before = state(model)
    handle = encoder_attentions(model.model.vision_tower)[-1].register_forward_hook(Stop())
    with torch.no_grad(), la.wrap(model, la.PAINT(layers=(0, 1))), la.wrap(model, la.VMTC()):
        with pytest.raises(KeyboardInterrupt):
            model(**inputs)
        want = model(**inputs).logits  # and within the same wraps all goes on
        assert encoder_of(model)._attn_implementation == "sdpa"
        assert torch.equal(model(**inputs).logits, want)
    handle.remove()
    assert not changes(before, state(model))
    assert not READING
    handle = encoder_attentions(model.model.vision_tower)[-1].register_forward_hook(Stop())
    with pytest.raises(KeyboardInterrupt), la.wrap(model, la.PAINT(layers=(0, 1))):
        model(**inputs)
    handle.remove()
    assert not changes(before, state(model))
    watcher = weakref.ref(model)
    del model, handle, before
    gc.collect()
    assert watcher() is None


def test_a_pass_without_interventions_that_was_interrupted_does_not_silence_the_next(plain):
    model, inputs, _ = plain
    with torch.no_grad(), la.wrap(model, la.VHR(layers=(0, 1))):
        want = model(**inputs).logits
        counter = Interrupt()
        with counter:
            without_interventions(lambda: None)
        for line in range(1, counter.count + 1):
            with Interrupt(line), pytest.raises(KeyboardInterrupt):
                without_interventions(lambda: None)
            assert torch.equal(model(**inputs).logits, want), line


def test_a_silent_request_that_was_interrupted_does_not_silence_the_next_call(plain):
    model, inputs, _ = plain

    class Looks(la.Intervention):
        def rewrite(self, request):
            raise KeyboardInterrupt

    options = {"max_new_tokens": 1, "do_sample": False}
    with torch.no_grad(), la.wrap(model, la.VHR(layers=(0, 1))):
        want = model(**inputs).logits
    with torch.no_grad(), la.wrap(model, la.VHR(layers=(0, 1))) as lvlm, la.wrap(model, Looks()) as outer:
        session = outer._session
        with pytest.raises(KeyboardInterrupt):
            outer.generate(**inputs, **options)
        assert not session.modes.current.is_silent
        assert lvlm.report()
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, want)


def test_a_wrap_is_a_context_like_any_other(plain):
    model, inputs, logits = plain
    before = state(model)
    with ExitStack() as stack, torch.no_grad():
        lvlm = stack.enter_context(la.wrap(model, la.VHR(layers=(0, 1))))
        assert not torch.equal(model(**inputs).logits, logits)
        assert "vhr" in str(lvlm.report())
    assert not changes(before, state(model))
