"""The loop against `generate`: where joining changes nothing, every bit of tokens, scores and logits is the same."""

import pytest
import torch
from transformers import LogitsProcessor, MaxLengthCriteria, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import lvlm_attn as la
from tests.decoding.steps import model_of
from tests.tiny import tiny_inputs, tiny_model
from tests.versions import needs_pre_encoding

BATCH = [(1,), (2,), (0,)]
ENDS = list(range(10, 40))


class Untouched(la.Intervention):
    """Joins the logits of no view, and leaves them as they are."""

    def fuse(self, main, views, step):
        return main


class Into(LogitsProcessor):
    """Writes into what it is given, as processors may."""

    def __call__(self, input_ids, scores):
        scores[:, 30:40] += 2.0
        return scores


class Tokens(BaseStreamer):
    def __init__(self):
        self.seen = []

    def put(self, value):
        self.seen.append(value.tolist())

    def end(self):
        self.seen.append("end")


class Row(StoppingCriteria):
    """Ends one row early, which `generate` goes on to fill with tokens of its choice."""

    def __call__(self, input_ids, scores, **kwargs):
        return torch.arange(len(input_ids)) == 1


OPTIONS = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9},
    "sequences": {"do_sample": True, "num_return_sequences": 2, "repetition_penalty": 1.4},
    "no cache": {"use_cache": False},
    "ends": {"do_sample": True, "eos_token_id": ENDS, "max_new_tokens": 12},
    "ends, padding of its own": {"do_sample": True, "eos_token_id": ENDS, "pad_token_id": 7},
    "least": {"eos_token_id": ENDS, "min_new_tokens": 3},
    "one token": {"max_new_tokens": 1},
    "criterion": {"stopping_criteria": [Row()]},
    "processor that writes": {"logits_processor": [Into()]},
    "scores alone": {"output_logits": False},
    "no outputs": {"output_logits": False, "output_scores": False},
    "tokens alone": {"return_dict_in_generate": False},
}


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=needs_pre_encoding if c == "sequences" else ()) for c in OPTIONS]
)
def test_every_bit_is_that_of_generate(name, case):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    options = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True} | OPTIONS[case]
    found = []
    for wrapped in (False, True):
        streamer = Tokens()
        given = options | {"streamer": streamer}
        torch.manual_seed(5)
        if wrapped:
            with la.wrap(model, Untouched()) as lvlm:
                out = lvlm.generate(**inputs, **given)
        else:
            out = model.generate(**inputs, **given)
        found.append((out, streamer.seen))
    (want, streamed), (got, ours) = found
    assert ours == streamed
    assert streamed[-1] == "end"
    if not options["return_dict_in_generate"]:
        assert torch.equal(got, want)
        return
    assert type(got) is type(want)
    assert torch.equal(got.sequences, want.sequences)
    for key in ("scores", "logits"):
        one, other = getattr(got, key), getattr(want, key)
        assert (one is None) == (other is None)
        assert all(torch.equal(a, b) for a, b in zip(one or (), other or (), strict=True))


def test_processors_do_not_write_into_what_a_method_was_given():
    class Keeps(la.Intervention):
        def fuse(self, main, views, step):
            kept.append((main, main.clone()))
            return main

    kept = []
    model = tiny_model("llava")
    model.generation_config.suppress_tokens = None  # else a processor of transformers makes a copy first
    inputs = tiny_inputs("llava", model, BATCH)
    with la.wrap(model, Keeps()) as lvlm:
        lvlm.generate(**inputs, max_new_tokens=3, logits_processor=[Into()])
    assert len(kept) == 3
    assert all(torch.equal(main, before) for main, before in kept)


def test_lengths_end_it_wherever_they_are_set():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    prompt = inputs["input_ids"].shape[1]
    criterion = MaxLengthCriteria(max_length=prompt + 2)
    for options in ({"max_length": prompt + 3}, {"max_new_tokens": 5, "stopping_criteria": [criterion]}):
        want = model.generate(**inputs, do_sample=False, **options)
        with la.wrap(model, Untouched()) as lvlm:
            assert torch.equal(lvlm.generate(**inputs, do_sample=False, **options), want)
        assert want.shape[1] < prompt + 5


def test_stop_strings_and_ends_of_a_batch():
    model, processor = la.load("toy")
    from lvlm_attn import toy

    images = [scene.image for scene in toy.scenes("dev")[:3]]
    ask = {
        "images": images,
        "prompts": ["Describe the image.", "Is there a dog in the image?", "Describe the image."],
    }
    options = {"max_new_tokens": 30, "do_sample": False, "return_dict_in_generate": True}
    for extra in ({}, {"stop_strings": [" and", "."], "tokenizer": processor.tokenizer}):
        with la.wrap(model, processor=processor) as lvlm:
            want = lvlm.generate(**ask, **options, **extra).sequences
        with la.wrap(model, Untouched(), processor=processor) as lvlm:
            got = lvlm.generate(**ask, **options, **extra).sequences
        assert torch.equal(got, want)
        lengths = (want != model.generation_config.pad_token_id).sum(1)
        assert len(set(lengths.tolist())) > 1  # rows end at their own places
