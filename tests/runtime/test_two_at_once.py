"""Two threads on one model, and two models of which one was interrupted."""

import threading

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.interventions.base import Intervention
from lvlm_attn.runtime.active import ACTIVE
from tests.tiny import tiny_inputs, tiny_model

BATCH = [(1,), (2,)]
OPTIONS = {"max_new_tokens": 6, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


def steps(model, inputs):
    with torch.no_grad():
        return torch.stack(model.generate(**inputs, **OPTIONS).logits)


def test_two_threads_get_the_right_answer_or_one_sentence():
    model = tiny_model("llava")
    mine = [tiny_inputs("llava", model, batch) for batch in (BATCH, [(3,)])]
    with la.wrap(model, la.VHR(layers=(1, 2))):
        want = [steps(model, inputs) for inputs in mine]
        refused, wrong, done = [], [], []
        barrier = threading.Barrier(2)

        def work(place):
            barrier.wait()
            for _ in range(8):
                try:
                    got = steps(model, mine[place])
                except la.UnsupportedError as error:
                    refused.append(str(error))
                    continue
                done.append(place)
                if not torch.equal(got, want[place]):
                    wrong.append(place)

        threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert done
        assert all("Two threads use one wrapped model" in text for text in refused)
        # Once the others are done, the next one gets in.
        assert torch.equal(steps(model, mine[0]), want[0])


def test_a_thread_is_kept_out_between_the_forwards_of_a_generate():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    outcome = []

    def intrude():
        try:
            with torch.no_grad():
                model(**inputs)
        except la.UnsupportedError as error:
            outcome.append(str(error))

    class Pause:
        def __call__(self, input_ids, scores, **kwargs):
            thread = threading.Thread(target=intrude)
            thread.start()
            thread.join()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with la.wrap(model, la.VHR(layers=(1,))), torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False, stopping_criteria=[Pause()])
        assert len(outcome) == 2
        intrude()
    assert len(outcome) == 2


class NoPicture:
    """Breaks the model's forward, before its language model is reached."""

    def __getattr__(self, name):
        raise ValueError("pixels of no picture")


def test_living_threads_take_turns():
    """Each thread stays alive and waits while the other one has the model, also after an error in it."""
    model = tiny_model("llava")
    mine = [tiny_inputs("llava", model, batch) for batch in (BATCH, [(3,)])]
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    got, failed = [], []

    def work(place):
        for turn in range(4):
            turns[place].acquire(timeout=60)
            try:
                if turn == 1:
                    with pytest.raises(Exception, match="pixels of no picture"):
                        model(**mine[place] | {"pixel_values": NoPicture()})
                    failed.append(place)
                got.append((place, steps(model, mine[place])))
            except BaseException as error:
                got.append((place, error))
            finally:
                turns[1 - place].release()

    with la.wrap(model, la.VHR(layers=(1, 2))):
        want = [steps(model, inputs) for inputs in mine]
        threads = [threading.Thread(target=work, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [place for place, _ in got] == [0, 1] * 4
    assert sorted(failed) == [0, 1]
    for place, found in got:
        assert not isinstance(found, BaseException), found
        assert torch.equal(found, want[place])


def test_a_call_that_was_left_behind_does_not_act_in_another_model():
    first, second = tiny_model("llava"), tiny_model("llava_next")
    inputs = tiny_inputs("llava_next", second, BATCH)
    with torch.no_grad(), la.wrap(second, la.VAR(sink_dims=(3,), tau=0.1)):
        want = second(**inputs).logits
    left = []

    class Keeps(Intervention):
        def edit_weights(self, layer, weights):
            left.append(ACTIVE.get())
            return weights * 2

    with torch.no_grad(), la.wrap(first, Keeps()):
        first(**tiny_inputs("llava", first, BATCH))
    token = ACTIVE.set(left[0])
    try:
        with torch.no_grad(), la.wrap(second, la.VAR(sink_dims=(3,), tau=0.1)):
            assert torch.equal(second(**inputs).logits, want)
    finally:
        ACTIVE.reset(token)
