"""The recorder as people use it: words, given answers, limits, disks, ends of answers, and what it refuses."""

import gc
import weakref

import pytest
import torch

import lvlm_attn as la
from lvlm_attn import toy
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps import recording
from tests.maps.made import toy_maps, toy_model
from tests.tiny import tiny_inputs, tiny_model

IMAGE = toy.scenes("test")[0].image
QUESTION = "Describe this image."


def asked(*interventions, prompts=(QUESTION,), **options):
    model, processor = toy_model()
    with la.wrap(model, *interventions, processor=processor) as lvlm:
        answers = lvlm.generate(
            images=[IMAGE] * len(prompts), prompts=list(prompts), **{"max_new_tokens": 24} | options
        )
    return lvlm, answers


def test_maps_of_the_toy_are_those_of_eager_attention():
    lvlm, _ = asked(la.record())
    maps, wanted = lvlm.maps, toy_maps()
    assert maps.pieces == wanted.pieces
    assert torch.equal(maps.targets, wanted.targets)
    for layer in wanted.layers:
        assert float((maps.weights[layer] - wanted.weights[layer]).abs().max()) < 5e-6
    assert maps["car"].pixels().sum() == pytest.approx(wanted["car"].pixels().sum(), abs=1e-6)


def test_a_decoding_step_is_held_once(monkeypatch):
    held = []
    add = recording.Log.add

    def noted(log, step, layer, weights):
        held.append(weights)
        return add(log, step, layer, weights)

    monkeypatch.setattr(recording.Log, "add", noted)
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with la.wrap(model, la.record()):
        model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert len(held) > 2
    assert [weights.shape[2] for weights in held] == [1] * len(held)
    assert all(weights.untyped_storage().nbytes() == weights.numel() * 4 for weights in held)


def test_an_answer_ends_with_its_end_token():
    lvlm, answers = asked(la.record(), prompts=(QUESTION, "Is there an elephant in the image?"))
    one, two = lvlm.maps.sample(0), lvlm.maps.sample(1)
    assert len(one) == 24
    assert two.tokens == [" No", " </s>"]
    assert two.rows.shape == (1, 2)
    assert not lvlm.maps.weights[0][1, :, 2:].any()
    assert lvlm.maps.meta["answers"] == answers
    text = two["No"].text()
    assert [item.text for item in text][-3:] == [" :", " No", " </s>"]
    assert text[-3].weight > 0 == text[-2].weight == text[-1].weight


def test_a_given_answer_is_mapped_without_choosing():
    free, answers = asked(la.record())
    forced, said = asked(la.record(), answers=answers, max_new_tokens=24)
    assert said == answers
    count = len(free.maps)
    for layer in free.maps.layers:
        got = forced.maps.weights[layer][:, :, :count, : free.maps.layout.length]
        assert torch.allclose(got, free.maps.weights[layer], atol=1e-6)
    other, said = asked(la.record(), answers=["The image contains a zebra."])
    assert said == ["The image contains a zebra."]
    assert other.maps["zebra"].pixels().sum() > 0
    assert other.maps.tokens[-1] == " </s>"


@pytest.mark.parametrize("answers", [["a", "b"], [""]])
def test_given_answers_that_do_not_fit(answers):
    with pytest.raises(LvlmAttnError, match=r"one answer per prompt|has no token"):
        asked(la.record(), answers=answers)


def test_too_much_memory_is_refused_before_anything_runs():
    with pytest.raises(
        LvlmAttnError, match=r"would take 1.4 MiB, above limit=1.0 MiB; choose layers="
    ) as caught:
        asked(la.record(limit=2**20), max_new_tokens=64)
    assert "\n" not in str(caught.value)
    lvlm, _ = asked(la.record(limit=2**20, reduce="all"), max_new_tokens=64)
    assert lvlm.maps.layers == ("mean",)


def test_weights_on_disk(tmp_path):
    lvlm, _ = asked(la.record())
    stored, _ = asked(la.record(to=tmp_path, limit=1))
    for layer in lvlm.maps.layers:
        assert torch.equal(stored.maps.weights[layer], lvlm.maps.weights[layer])
    files = sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file())
    assert files == [f"{layer}.f32" for layer in range(6)]
    assert stored.maps["car"].save(tmp_path / "car").exists()
    without, _ = asked(la.record(to=tmp_path / "none", layers=(1,)), use_cache=False, max_new_tokens=4)
    assert torch.allclose(
        without.maps.weights[1], lvlm.maps.weights[1][:, :, :4, : without.maps.layout.length], atol=1e-6
    )
    assert len(list((tmp_path / "none").iterdir())) == 1


def test_sink_scores_are_those_of_var():
    lvlm, _ = asked(
        la.record(sinks=True, rows="last"), prompts=(QUESTION, "Is there an elephant in the image?")
    )
    maps = lvlm.maps
    seen = {}

    class Look(la.Intervention):
        def observe(self, layer, hidden):
            seen.setdefault(layer.index, hidden)

    asked(Look(), prompts=(QUESTION, "Is there an elephant in the image?"))
    from lvlm_attn.measures.sinks import sink_score

    model, processor = toy_model()
    dims = la.find_sinks(model, processor).dims
    for layer, scores in maps.sink_scores.items():
        wanted = sink_score(seen[layer], dims)
        assert torch.allclose(scores[:, : wanted.shape[1]], wanted, atol=1e-5)
        assert not scores[:, wanted.shape[1] :].any()
    assert maps.sample(0).view("no_sinks").view_name == "no_sinks"


def test_the_next_prompt_replaces_the_last_one():
    model, processor = toy_model()
    with la.wrap(model, la.record(), processor=processor) as lvlm:
        with pytest.raises(LvlmAttnError, match="Nothing was recorded"):
            _ = lvlm.maps
        lvlm.generate(images=[IMAGE], prompts=[QUESTION], max_new_tokens=4)
        first = lvlm.maps
        assert lvlm.maps is first
        lvlm.generate(images=[IMAGE], prompts=["Is there an elephant in the image?"], max_new_tokens=4)
        assert lvlm.maps["No"].pixels().shape == (144, 144)
    assert lvlm.maps["No"].view_name == "raw"
    assert first.words[0] == "The"


def test_without_a_recorder():
    lvlm, _ = asked(la.VHR(), max_new_tokens=2)
    with pytest.raises(LvlmAttnError, match=r"put la.record\(\) among the interventions"):
        _ = lvlm.maps


def test_the_model_is_left_as_it_was():
    model, processor = toy_model()
    before = dict(vars(model))
    asked(la.record(), max_new_tokens=2)
    assert dict(vars(model)) == before
    with pytest.raises(KeyboardInterrupt):
        asked(la.record(), Stop(), max_new_tokens=4)
    assert dict(vars(model)) == before
    with la.wrap(model, la.record(), processor=processor):
        outer = la.wrap(model, Told())
        outer.__enter__()
    outer.__exit__(None, None, None)
    assert dict(vars(model)) == before


class Stop(la.Intervention):
    """Ctrl-C at the second token."""

    def observe(self, layer, hidden):
        if not layer.is_prompt:
            raise KeyboardInterrupt


class Told(la.Intervention):
    def generated(self, ended, state):
        pass


def test_maps_do_not_keep_the_model_alive():
    model = tiny_model("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with la.wrap(model, la.record()) as lvlm:
        model.generate(**inputs, max_new_tokens=2)
    maps, known = lvlm.maps, weakref.ref(model)
    del model
    gc.collect()
    assert known() is None
    assert maps.weights[0].shape[2] == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: la.record(layers=9), "record: layer 9 is out of range; this model has 6 decoder layers"),
        (lambda: la.record(heads=4), "head 4 is out of range; this model has 4 heads"),
        (lambda: la.record(rows="genrated"), "Did you mean 'generated'?"),
        (lambda: la.record(rows=[]), "must be whole numbers, at least one"),
        (lambda: la.record(rows=["a"]), "must be whole numbers"),
        (lambda: la.record(reduce="head"), "Did you mean 'heads'?"),
        (lambda: la.record(limit=0), "limit=0 must be a whole number of bytes"),
        (lambda: la.record(limit=True), "limit=True must be a whole number of bytes"),
        (lambda: la.record(heads=[True]), "must be whole numbers"),
        (lambda: la.record(heads=0.5), "must be whole numbers"),
        (
            lambda: la.record(rows=[9999]),
            "rows=[9999] are out of range; this prompt and its answer are read up to",
        ),
        (lambda: la.record(rows=[-9999]), "rows=[-9999] are out of range"),
        (lambda: la.record(to=3), "to=3 must be the path of a folder"),
    ],
)
def test_parameters_out_of_range(make, message):
    with pytest.raises(LvlmAttnError) as caught:
        asked(make(), max_new_tokens=2)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_without_pictures_have_patches_and_say_why_there_are_no_pixels():
    model = tiny_model("qwen2_vl")
    inputs = tiny_inputs("qwen2_vl", model, [(1,)])
    with la.wrap(model, la.record()) as lvlm:
        model.generate(**inputs, max_new_tokens=3)
    maps = lvlm.maps
    assert maps[0].grid()[0].shape == tuple(size // 2 for size in (4, 6))
    with pytest.raises(LvlmAttnError, match=r"call lvlm.generate\(images="):
        maps.pixels()
    with pytest.raises(LvlmAttnError, match="Words are not known without a tokenizer"):
        maps["dog"]
    assert maps.tokens[0].startswith("#")
