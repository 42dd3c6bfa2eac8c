"""Joined logits against an oracle that reads every view by itself; and what the decoding loop gets to see."""

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import lvlm_attn as la
from tests.decoding.steps import double, error, full_logits, generated, model_of, with_words, without_images
from tests.oracle_setup import DIM, TAU, sink_model
from tests.tiny import NAMES, PAD, tiny_inputs, tiny_rows
from tests.versions import needs_pre_encoding

BATCH = [(1,), (2,), (0,)]
WORDS = [31, 45, 12, 77, 60]
FEW = ["llava", "llava_next", "qwen2_5_vl"]


class Pixels(la.Intervention):
    """Contrasts with other pixels."""

    def views(self, request):
        return (request.with_pixels(lambda pixels, index: pixels.flip(-1) + 0.5 * index),)

    def fuse(self, main, views, step):
        return 2 * main - views[0]


class Words(la.Intervention):
    """Adds the view without images."""

    def views(self, request):
        return (request.without_images(),)

    def fuse(self, main, views, step):
        return main + 0.5 * views[0]


class Tokenizer:
    bos_token_id = None

    def encode(self, text, add_special_tokens):
        return WORDS


class Longer(la.Intervention):
    """Contrasts with a longer prompt."""

    def views(self, request):
        return (request.with_instruction("any", "Longer"),)

    def fuse(self, main, views, step):
        return 1.5 * main - 0.5 * views[0]


class Same(la.Intervention):
    """Reads a second view and ignores it."""

    def views(self, request):
        return (request,)

    def fuse(self, main, views, step):
        return main


class Opposite(Same):
    """Makes the least likely token the likeliest."""

    def fuse(self, main, views, step):
        return -main


def flipped(row):
    """The pixels of `Pixels`, image by image."""
    if "pixel_values" not in row:
        return row
    pixels = row["pixel_values"].flip(-1)
    if "image_grid_thw" in row:
        lengths = row["image_grid_thw"].prod(-1).tolist()
        pixels = torch.cat([piece + 0.5 * place for place, piece in enumerate(pixels.split(lengths))])
    else:
        pixels = pixels + 0.5 * torch.arange(len(pixels)).view(-1, *[1] * (pixels.dim() - 1))
    return row | {"pixel_values": pixels}


def front(row):
    """Where `Longer` puts its words: in front of the first image and its marker, or of the prompt."""
    ids = row["input_ids"][0].tolist()
    if 3 not in ids:
        return 0
    return ids.index(3) - (ids[ids.index(3) - 1] == 5 and "image_grid_thw" in row)


VIEWS = {
    "pixels": (Pixels, lambda main, view: 2 * main - view, flipped),
    "words": (Words, lambda main, view: main + 0.5 * view, without_images),
    "longer": (
        Longer,
        lambda main, view: 1.5 * main - 0.5 * view,
        lambda row: with_words(row, WORDS, front(row)),
    ),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_joined_logits_equal_two_separate_recomputes(name, view):
    kind, join, change = VIEWS[view]
    if name == "internvl" and view == "pixels":
        change = internvl_flipped
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, kind(), processor=Tokenizer()) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    for index, row in enumerate(rows):
        main = full_logits(double(name), row, tokens[index])
        other = full_logits(double(name), change(row), tokens[index])
        assert error(logits[index], join(main, other)) < 2e-5
        if "pixel_values" in row or view == "longer":
            assert error(other, main) > 1e-2  # so the equality can fail
        assert torch.equal(tokens[index], logits[index].index_fill(-1, torch.arange(10), -1e9).argmax(-1))


def internvl_flipped(row):
    """InternVL lays the tiles of all images one after another."""
    if "pixel_values" not in row:
        return row
    ids, pixels = row["input_ids"][0], row["pixel_values"].flip(-1)
    tokens, place = [], -1
    for index, token in enumerate(ids.tolist()):
        if token == 3 and ids[index - 1] != 3:
            place += 1
        if token == 3:
            tokens.append(place)
    tiles = torch.tensor(tokens[:: len(tokens) // len(pixels)])
    return row | {"pixel_values": pixels + 0.5 * tiles.view(-1, 1, 1, 1)}


@pytest.mark.parametrize("name", [*FEW, "internvl", "llava_onevision"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 1.3, "top_k": 20},
        pytest.param(
            {"do_sample": True, "num_return_sequences": 2, "repetition_penalty": 1.4},
            marks=needs_pre_encoding,
        ),
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3, "eos_token_id": list(range(10, 40))},
        {"do_sample": True, "eos_token_id": list(range(10, 40)), "max_new_tokens": 9},
    ],
    ids=["greedy", "sample", "sequences", "no cache", "static", "processors", "ends"],
)
def test_a_view_that_is_ignored_leaves_generate_as_it_is(name, options):
    """The same draws, processors, ends and padding as the plain call; greedily and by sampling."""
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    options = {"max_new_tokens": 6, "do_sample": False} | options
    torch.manual_seed(5)
    plain = model.generate(**inputs, **options)
    with la.wrap(model, Same()) as lvlm:
        torch.manual_seed(5)
        assert torch.equal(lvlm.generate(**inputs, **options), plain)
    with la.wrap(model, Opposite()) as lvlm:
        torch.manual_seed(5)
        other = lvlm.generate(**inputs, **options)
    assert other.shape != plain.shape or not torch.equal(other, plain)  # so the equality can fail


class Watch(BaseStreamer, LogitsProcessor):
    """Notes what a streamer and a processor are given."""

    def __init__(self):
        self.streamed, self.processed, self.ended = [], [], 0

    def put(self, value):
        self.streamed.append(value.tolist())

    def end(self):
        self.ended += 1

    def __call__(self, input_ids, scores):
        self.processed.append((input_ids.tolist(), scores.shape))
        return scores + torch.arange(scores.shape[1]) * 0.01


class Judge(StoppingCriteria):
    """Notes what a criterion is given."""

    def __init__(self):
        self.judged = []

    def __call__(self, input_ids, scores, **kwargs):
        self.judged.append((input_ids.tolist(), len(scores)))
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_streamers_processors_and_criteria_see_the_rows_asked_for(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1,)])
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
    }
    seen = []
    for kind in (None, Same, Longer):
        watch, judge = Watch(), Judge()
        given = {"streamer": watch, "logits_processor": [watch], "stopping_criteria": [judge]}
        if kind is None:
            out = model.generate(**inputs, **options, **given)
        else:
            with la.wrap(model, kind(), processor=Tokenizer()) as lvlm:
                out = lvlm.generate(**inputs, **options, **given)
        assert watch.ended == 1
        assert len(out.scores) == 4
        assert out.scores[0].shape == (1, 99)
        seen.append((watch.streamed, watch.processed, judge.judged))
    assert seen[1] == seen[0]
    assert seen[2] != seen[0]
    assert seen[2][0][0] == seen[0][0][0]  # the prompt streamed is the one asked for, not the longer view
    assert [shape for _, shape in seen[2][1]] == [shape for _, shape in seen[0][1]]


def test_a_criterion_ends_the_generation():
    class Third(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] == length + 3)

    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    length = inputs["input_ids"].shape[1]
    with la.wrap(model, Words()) as lvlm:
        out = lvlm.generate(**inputs, max_new_tokens=9, do_sample=False, stopping_criteria=[Third()])
    assert out.shape[1] == length + 3


def test_outputs_are_those_of_the_rows_asked_for():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with la.wrap(model, Pixels()) as lvlm:
        out = lvlm.generate(
            **inputs,
            max_new_tokens=3,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
    assert out.sequences.shape[0] == 3
    assert [score.shape for score in out.scores] == [(3, 99)] * 3
    assert torch.isinf(
        out.scores[0][:, :10]
    ).all()  # suppressed by the model's configuration, after the joining
    assert torch.isfinite(out.logits[0]).all()
    assert out.past_key_values is None


@pytest.mark.parametrize("name", FEW)
def test_batch_rows_equal_single_rows(name):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    for kind in (Pixels, Words, Longer):
        with la.wrap(model, kind(), processor=Tokenizer()) as lvlm:
            tokens, logits = generated(lvlm, inputs)
            for index, row in enumerate(rows):
                single, alone = generated(lvlm, row)
                assert torch.equal(single[0], tokens[index])
                assert error(logits[index], alone[0].double()) < 2e-5


def test_padding_is_told_from_the_padding_id():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    assert (inputs["input_ids"] == PAD).any()
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with la.wrap(model, Pixels()) as lvlm:
        assert torch.equal(generated(lvlm, bare)[1], generated(lvlm, inputs)[1])


@pytest.mark.parametrize("name", ["llava_next", "qwen2_5_vl"])
def test_in_model_methods_act_on_every_view(name):
    """VAR's rows do not change by riding beside views with and without images."""
    model = sink_model(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    var = la.VAR(tau=TAU, sink_dims=(DIM,))
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
    }
    with la.wrap(model, var):
        want = model.generate(**inputs, **options)

    class Ignore(Words):
        def fuse(self, main, views, step):
            return main

    with la.wrap(model, var, Ignore()) as lvlm:
        got = lvlm.generate(**inputs, **options)
        assert lvlm.report().rows[0]
    assert torch.equal(got.sequences, want.sequences)
    assert error(torch.stack(got.logits), torch.stack(want.logits).double()) < 2e-5
    with la.wrap(model, var), la.wrap(model, Ignore()) as lvlm:
        nested = lvlm.generate(**inputs, **options)
    assert torch.equal(nested.sequences, want.sequences)
    bare = model.generate(**inputs, **options)
    assert error(torch.stack(got.logits), torch.stack(bare.logits).double()) > 1e-3


def test_interventions_join_in_the_order_given():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    (row,) = tiny_rows("llava", model, [(1,)])
    with la.wrap(model, Pixels(), Words()) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    parts = [
        full_logits(double("llava"), change(row), tokens[0]) for change in (dict, flipped, without_images)
    ]
    assert error(logits[0], 2 * parts[0] - parts[1] + 0.5 * parts[2]) < 2e-5
