"""What decoding takes from transformers beyond its promises; each docstring there says what to do when a test fails."""

import inspect

import pytest
import torch
import transformers
from packaging.version import Version

from lvlm_attn.runtime import transformers_private as private
from tests.decoding.steps import model_of
from tests.tiny import tiny_inputs

BATCH = [(1,), (2,)]


def prepared(model, **options):
    """What `generate` hands to a decoding loop: ids, and the rest by name."""
    found = []

    def loop(model, input_ids, **rest):
        found.append((input_ids, rest))
        return input_ids

    inputs = tiny_inputs("llava", model, BATCH)
    model.generate(**inputs, max_new_tokens=4, do_sample=False, custom_generate=loop, **options)
    return found[0]


def split(rest):
    """The configuration, and what is for the model."""
    own = ("logits_processor", "stopping_criteria", "generation_config")
    return rest["generation_config"], {key: value for key, value in rest.items() if key not in own}


def test_padding_and_end_tokens():
    model = model_of("llava")
    config, _ = split(prepared(model, pad_token_id=7, eos_token_id=[11, 12])[1])
    assert int(private.pad_token(config)) == 7
    assert private.end_tokens(config).tolist() == [11, 12]
    config, _ = split(prepared(model)[1])
    assert private.end_tokens(config) is None


def test_encoded_images_in_place_of_pixels():
    model = model_of("llava")
    takes = private.takes_encoded_images(model)
    assert takes == (Version(transformers.__version__) >= Version("5.23"))
    if not takes:
        return
    inputs = tiny_inputs("llava", model, BATCH)
    pixels = inputs.pop("pixel_values")
    with torch.no_grad():
        encoded = model.model.get_image_features(pixels, return_dict=True)
        got = model(**inputs, mm_encoder_outputs={"image": encoded}).logits
        assert torch.equal(got, model(**inputs, pixel_values=pixels).logits)
    assert not private.takes_encoded_images(model.model.language_model)


def test_the_attention_of_a_configuration():
    assert private.attention_of(model_of("llava").config.text_config) == "sdpa"


def test_a_prefill_and_what_follows_it():
    model = model_of("llava")
    ids, rest = prepared(model)
    config, kwargs = split(rest)
    length = ids.shape[1]
    with torch.no_grad():
        output = private.prefill(model, ids, config, dict(kwargs))
        inputs = tiny_inputs("llava", model, BATCH)
        plain = model(**inputs, position_ids=kwargs["position_ids"], logits_to_keep=1)
    assert torch.equal(output.logits, plain.logits)
    after = private.kwargs_after(model, output, dict(kwargs))
    assert after["past_key_values"].get_seq_length() == length
    assert after["attention_mask"].shape == (2, length + 1)
    assert bool((after["attention_mask"][:, -1] == 1).all())
    assert torch.equal(after["position_ids"][:, -1], kwargs["position_ids"][:, -1] + 1)
    assert private.kwargs_after(model, {}, dict(kwargs))["attention_mask"].shape == (2, length + 1)


def test_tuning_for_decoding_is_over_after_the_block():
    model = model_of("llava")
    before = model.get_experts_implementation()
    with private.tuned_for_decoding(model):
        pass
    assert model.get_experts_implementation() == before


def test_the_steps_of_a_beam_search():
    """One prompt, two beams, five words, worked out by hand."""
    model = model_of("llava")
    sequences = torch.tensor([[[8, 1, 0, 0], [8, 2, 0, 0]]])
    indices = torch.tensor([[[0, -1, -1], [0, -1, -1]]], dtype=torch.int32)
    total = torch.tensor(
        [[-9.0, -1, -9, -9, -3, -9, -9, -2, -9, -4]]
    )  # words 1 and 4 of beam 0, 2 and 4 of beam 1
    best, following, came = private.best_continuations(
        model,
        accumulated_log_probs=total,
        running_sequences=sequences,
        running_beam_indices=indices,
        cur_len=2,
        decoder_prompt_len=1,
        do_sample=False,
        beams_to_keep=4,
        num_beams=2,
        vocab_size=5,
        batch_size=1,
    )
    assert best.tolist() == [[-1, -2, -3, -4]]
    assert following[0, :, :3].tolist() == [[8, 1, 1], [8, 2, 2], [8, 1, 4], [8, 2, 4]]
    assert came[0, :, 1].tolist() == [0, 1, 0, 1]
    stops = torch.tensor([[False, True, False, True]])
    running, scores, _ = private.running_beams(
        model,
        topk_log_probs=best,
        topk_running_sequences=following,
        topk_running_beam_indices=came,
        next_token_hits_stopping_criteria=stops,
        num_beams=2,
    )
    assert running[0, :, :3].tolist() == [[8, 1, 1], [8, 1, 4]]
    assert scores.tolist() == [[-1, -3]]
    done, values, _, is_done = private.finished_beams(
        model,
        sequences=torch.zeros_like(sequences),
        topk_running_sequences=following,
        beam_scores=torch.full((1, 2), -1e9),
        topk_log_probs=best,
        beam_indices=torch.full_like(indices, -1),
        topk_running_beam_indices=came,
        is_early_stop_heuristic_unsatisfied=torch.tensor([[True]]),
        is_sent_finished=torch.zeros(1, 2, dtype=torch.bool),
        next_token_hits_stopping_criteria=stops,
        top_num_beam_mask=torch.tensor([True, True, False, False]),
        num_beams=2,
        cur_len=2,
        decoder_prompt_len=1,
        length_penalty=1.0,
        early_stopping=False,
    )
    assert done[0, 0, :3].tolist() == [8, 2, 2]
    assert float(values[0, 0]) == -2 / 2  # by its length without the prompt
    assert is_done.tolist() == [[True, False]]


@pytest.mark.parametrize(("running", "improves"), [(-2.0, True), (-9.0, False)])
def test_whether_a_beam_search_goes_on(running, improves):
    model = model_of("llava")
    is_done = torch.ones(1, 2, dtype=torch.bool)
    found = private.may_improve(
        model,
        is_early_stop_heuristic_unsatisfied=torch.tensor([[True]]),
        running_beam_scores=torch.tensor([[running, -9.0]]),
        beam_scores=torch.tensor([[-1.0, -2.0]]),
        is_sent_finished=is_done,
        cur_len=3,
        max_length=9,
        decoder_prompt_len=1,
        early_stopping=False,
        length_penalty=1.0,
    )
    assert found.tolist() == [[improves]]
    goes_on = torch.zeros(1, 4, dtype=torch.bool)
    assert private.search_goes_on(model, found, is_done, goes_on, False) is improves
    assert private.search_goes_on(model, found, is_done, goes_on, True) is False
    assert private.search_goes_on(model, found, is_done, ~goes_on, False) is False


def test_each_says_what_to_do_when_it_fails():
    for name, function in inspect.getmembers(private, inspect.isfunction):
        if function.__module__ == private.__name__:
            assert "When it fails:" in (function.__doc__ or ""), name


def test_keeping_processors():
    """Janus's own `generate` drops them; in all other models nothing is changed."""
    from transformers import LogitsProcessor

    class Only(LogitsProcessor):
        def __call__(self, input_ids, scores):
            chosen = torch.full_like(scores, -torch.inf)
            chosen[:, 55] = 0
            return chosen

    for name in ("janus", "llava"):
        model = model_of(name)
        inputs = tiny_inputs(name, model, [(1,)])
        before = dict(vars(model))
        with private.keeping_processors(model, [Only()]):
            output = model.generate(**inputs, max_new_tokens=3, logits_processor=[Only()])
        assert output[0, -3:].tolist() == [55, 55, 55], (
            "`generate` puts its processors together elsewhere: let keeping_processors add to them there."
        )
        assert dict(vars(model)) == before
