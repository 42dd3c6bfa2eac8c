"""Every `lvlm.generate` gets a cache with room, to the bit of a growing one; a choice of the caller's stays."""

import copy

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import DynamicLayer

import lvlm_attn as la
from lvlm_attn.decoding.roomy_cache import USUAL_TOKENS, RoomyLayer, with_roomy_cache
from tests.decoding.steps import generated, model_of
from tests.tiny import NAMES, tiny_inputs, tiny_model
from tests.versions import needs_pre_encoding

BATCH = [(1,), (2,), (0,)]


def kinds(out):
    return {type(layer) for layer in out.past_key_values.layers}


WAYS = {
    "greedy": {},
    "sample": {"do_sample": True},
    "sequences": {"do_sample": True, "num_return_sequences": 2},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
    "more tokens than room": {"max_new_tokens": 9, "min_new_tokens": 9},
}
REPEATING = ("sequences", "beams", "sampled beams")


@pytest.mark.parametrize("edit", [None, la.VHR(layers=(1, 3))], ids=["bare", "vhr"])
@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=needs_pre_encoding if way in REPEATING else ()) for way in WAYS]
)
@pytest.mark.parametrize("name", NAMES)
def test_every_bit_is_that_of_a_growing_cache(name, way, edit, monkeypatch):
    if way == "more tokens than room":
        monkeypatch.setattr("lvlm_attn.decoding.roomy_cache.MOST_ROOM", 3)
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    options |= WAYS[way]
    found = []
    with la.wrap(model, *([edit] if edit else [])) as lvlm:
        for call in (model.generate, lvlm.generate):
            torch.manual_seed(5)
            found.append(call(**inputs, **options))
    want, got = found
    assert kinds(want) == {DynamicLayer}
    assert kinds(got) == {RoomyLayer}
    assert torch.equal(got.sequences, want.sequences)
    assert all(torch.equal(one, other) for one, other in zip(got.logits, want.logits, strict=True))
    for one, other in zip(got.past_key_values.layers, want.past_key_values.layers, strict=True):
        assert torch.equal(one.keys, other.keys)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("way", ["lookup", "chunks"])
def test_prompt_lookup_and_chunks(way):
    options = {
        "lookup": {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1},
        "chunks": {"prefill_chunk_size": 7},
    }
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    if way == "chunks":
        try:
            model.generate(**inputs, max_new_tokens=1, **options[way])
        except ValueError as error:
            pytest.skip(f"transformers alone fails: {error}")
    with la.wrap(model) as lvlm:
        tokens, logits = generated(model, inputs, 8, **options[way])
        got, same = generated(lvlm, inputs, 8, **options[way])
    assert torch.equal(got, tokens)
    assert torch.equal(same, logits)


@pytest.mark.parametrize("beams", [1, 2])
def test_layers_with_a_sliding_window_stay_as_they_are(beams):
    model = tiny_model("internvl")
    text = model.config.text_config
    text.sliding_window, text.layer_types = 8, ["full_attention", "sliding_attention"] * 2
    model = type(model)(model.config).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    inputs = tiny_inputs("internvl", model, BATCH)
    options = {
        "num_beams": beams,
        "max_new_tokens": 12,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with la.wrap(model) as lvlm:
        want, got = (call(**inputs, **options, do_sample=False) for call in (model.generate, lvlm.generate))
    found = [type(layer) for layer in got.past_key_values.layers]
    assert [kind is RoomyLayer for kind in found] == [True, False, True, False]
    assert [layer.is_sliding for layer in got.past_key_values.layers] == [False, True, False, True]
    assert torch.equal(got.sequences, want.sequences)
    assert all(torch.equal(one, other) for one, other in zip(got.logits, want.logits, strict=True))


def test_a_choice_of_the_callers_stays():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    options = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    mine = DynamicCache(config=model.config.text_config)
    with la.wrap(model) as lvlm:
        out = lvlm.generate(**inputs, **options, past_key_values=mine)
        assert out.past_key_values is mine
        assert kinds(out) == {DynamicLayer}
        out = lvlm.generate(**inputs, **options, cache_implementation="static")
        assert type(out.past_key_values) is StaticCache
        assert lvlm.generate(**inputs, **options, use_cache=False).past_key_values is None
        config = GenerationConfig(use_cache=False)
        assert lvlm.generate(**inputs, **options, generation_config=config).past_key_values is None
        model.generation_config.cache_implementation = "static"
        assert type(lvlm.generate(**inputs, **options).past_key_values) is StaticCache
        model.generation_config.cache_implementation = None
        assert kinds(lvlm.generate(**inputs, **options)) == {RoomyLayer}


def test_a_loop_of_the_callers_gets_what_generate_prepares():
    seen = []

    def loop(model, input_ids, generation_config, logits_processor, stopping_criteria, **kwargs):
        seen.append(type(kwargs["past_key_values"].layers[0]))
        return input_ids

    model = model_of("llava")
    with la.wrap(model) as lvlm:
        lvlm.generate(**tiny_inputs("llava", model, BATCH), max_new_tokens=2, custom_generate=loop)
    assert seen == [DynamicLayer]


@pytest.mark.parametrize(
    ("options", "room"),
    [
        ({"max_new_tokens": 7}, 7),
        ({"max_length": 12}, 9),
        ({"max_length": 2}, 0),
        ({"generation_config": GenerationConfig(max_new_tokens=5)}, 5),
        ({"max_new_tokens": 100_000}, 256),
        ({}, USUAL_TOKENS),
    ],
)
def test_there_is_room_for_the_tokens_asked_for(options, room):
    given = with_roomy_cache(model_of("llava"), {"input_ids": torch.zeros(2, 3), **options})
    assert {layer._room for layer in given["past_key_values"].layers} == {room}
    assert set(given) == {"input_ids", "past_key_values", *options}


def test_several_turns_and_a_copy_of_the_cache():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    options = {
        "max_new_tokens": 3,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    found = []
    with la.wrap(model) as lvlm:
        for call in (model.generate, lvlm.generate):
            first = call(**inputs, **options)
            ids = torch.cat((first.sequences, torch.tensor([[31, 45]])), 1)
            copied = copy.deepcopy(first.past_key_values)
            for cache in (first.past_key_values, copied):
                found.append(call(input_ids=ids, past_key_values=cache, **options))
    assert all(torch.equal(one.sequences, found[0].sequences) for one in found)
    assert all(torch.equal(a, b) for one in found for a, b in zip(one.logits, found[0].logits, strict=True))
