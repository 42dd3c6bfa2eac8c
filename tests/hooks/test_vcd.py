"""VCD against an oracle that noises pixels and reads both views whole, in float64."""

import math

import pytest
import torch

import lvlm_attn as la
from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
from lvlm_attn.hooks.vcd import kept_signal, noisy
from tests.decoding.steps import (
    check_an_exception_restores,
    cut,
    double,
    error,
    full_logits,
    generated,
    model_of,
)
from tests.tiny import NAMES, tiny_inputs, tiny_rows

BATCH = [(1,), (2,), (0,)]
FEW = ["llava", "llava_next", "qwen2_5_vl"]


def signal(step):
    """What a thousand small steps of noise leave of the signal, one step after the other."""
    left = 1.0
    for index in range(step + 1):
        x = -6 + 12 * index / 999
        left *= 1 - ((5e-3 - 1e-5) / (1 + math.exp(-x)) + 1e-5)
    return left


def noised(row, step=500, seed=0):
    """The row with every picture noised; pictures are told apart by the test's own rules."""
    if "pixel_values" not in row:
        return row
    pixels = row["pixel_values"].float()
    if "image_grid_thw" in row:
        pieces = list(pixels.split(row["image_grid_thw"].prod(-1).tolist()))
    elif pixels.dim() == 5 or row.get("tiles") is None:
        pieces = list(pixels)
    else:
        pieces = list(pixels.split(row["tiles"]))
    mixed = []
    for index, piece in enumerate(pieces):
        source = torch.Generator().manual_seed(seed * 1_000_003 + index)
        if piece.dim() == 4:
            noise = torch.stack([torch.randn(tile.shape, generator=source) for tile in piece])
        else:
            noise = torch.randn(piece.shape, generator=source)
        mixed.append(math.sqrt(signal(step)) * piece + math.sqrt(1 - signal(step)) * noise)
    joined = torch.cat(mixed) if "image_grid_thw" in row or row.get("tiles") else torch.stack(mixed)
    return {key: value for key, value in row.items() if key != "tiles"} | {"pixel_values": joined}


def with_tiles(name, row):
    """InternVL: how many tiles each picture has, from the runs of image tokens."""
    if name != "internvl" or "pixel_values" not in row:
        return row
    text = "".join("x" if token == 3 else " " for token in row["input_ids"][0].tolist())
    runs = [len(run) for run in text.split()]
    per_tile = sum(runs) // len(row["pixel_values"])
    return row | {"tiles": [run // per_tile for run in runs]}


def test_the_schedule_is_a_thousand_small_steps():
    for step in (0, 1, 500, 999):
        assert kept_signal()[step] == pytest.approx(signal(step), rel=1e-9)
    assert all(a > b for a, b in zip(kept_signal(), kept_signal()[1:]))


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_two_separate_recomputes(name):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.VCD(alpha=0.7, beta=0.05)) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    for index, row in enumerate(rows):
        main = full_logits(double(name), row, tokens[index])
        other = full_logits(double(name), noised(with_tiles(name, row)), tokens[index])
        if "pixel_values" not in row:
            assert error(logits[index], main) < 2e-5
            continue
        want = cut(1.7 * main - 0.7 * other, main, 0.05)
        assert error(logits[index], want) < 2e-5
        assert error(1.7 * main - 0.7 * other, main) > 1e-2
        assert torch.isinf(want).any()


@pytest.mark.parametrize("name", FEW)
def test_the_same_view_gives_the_base_logits_on_the_plausible_set(name):
    class Control(la.VCD):
        def views(self, request):
            return (request,)

    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)])
    with la.wrap(model, Control()) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    bare_tokens, bare = generated(model, inputs)
    assert torch.equal(tokens, bare_tokens)
    assert error(logits, cut(bare.double(), bare.double(), 0.1)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_neutral_settings_keep_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    bare = generated(model, inputs)
    with la.wrap(model, la.VCD(alpha=0, beta=0)) as lvlm:
        assert lvlm.interventions == ()
        for run in (model, lvlm):
            assert torch.equal(generated(run, inputs)[1], bare[1])
    with la.wrap(model, la.VCD()) as lvlm:
        assert not torch.equal(generated(lvlm, inputs)[1], bare[1])


def test_no_contrast_with_a_cut_is_the_base_on_the_plausible_set():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,), (2,)])
    with la.wrap(model, la.VCD(alpha=0, beta=0.3)) as lvlm:
        _, logits = generated(lvlm, inputs)
    _, bare = generated(model, inputs)
    assert error(logits, cut(bare.double(), bare.double(), 0.3)) < 1e-5


def test_beta_of_one_chooses_greedily_whatever_alpha():
    model = model_of("llava")
    model_inputs = tiny_inputs("llava", model, [(1,), (2,)])
    with la.wrap(model, la.VCD(alpha=9, beta=1)) as lvlm:
        _, logits = generated(lvlm, model_inputs, suppress_tokens=None)
    assert torch.equal(torch.isfinite(logits).sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("name", FEW)
def test_batch_rows_equal_single_rows(name):
    """Noise included: it does not depend on a row's place, nor on the tiles other rows need."""
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.VCD(), no_image="pass") as lvlm:
        tokens, logits = generated(lvlm, inputs)
        for index, row in enumerate(rows):
            single, alone = generated(lvlm, row)
            assert torch.equal(single[0], tokens[index])
            assert error(logits[index], alone[0].double()) < 5e-5


@pytest.mark.parametrize("name", FEW)
def test_a_sample_after_another_is_the_sample_alone(name):
    model = model_of(name)
    first, second = tiny_rows(name, model, [(2,), (1,)])
    with la.wrap(model, la.VCD()) as lvlm:
        alone = generated(lvlm, second)
        generated(lvlm, first)
        assert torch.equal(generated(lvlm, second)[1], alone[1])
    with la.wrap(model, la.VCD(noise_seed=1)) as lvlm:
        assert not torch.equal(generated(lvlm, second)[1], alone[1])


@pytest.mark.parametrize("name", FEW)
def test_an_exception_leaves_the_model_as_it_was(name):
    check_an_exception_restores(name, BATCH, la.VCD)


def test_only_plausible_tokens_are_sampled():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(1,)])
    with la.wrap(model, la.VCD(beta=0.4)) as lvlm:
        for seed in range(5):
            torch.manual_seed(seed)
            tokens, logits = generated(lvlm, inputs, do_sample=True, suppress_tokens=None)
            assert torch.isfinite(logits.gather(-1, tokens[..., None])).all()


def test_noise():
    pixels = torch.zeros(2, 3, 40, 40)
    noise = noisy(pixels, 999)
    assert float(noise.var()) == pytest.approx(1 - signal(999), rel=0.05)
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(noisy(pixels, 999, index=1), noisy(pixels, 999, index=1))
    assert not torch.equal(noisy(pixels, 999, index=1), noise)
    assert noisy(pixels.bfloat16(), 10).dtype == torch.bfloat16
    assert torch.equal(noisy(pixels[:1], 500)[0], noisy(pixels, 500)[0])  # more tiles change no tile's noise


def test_a_prompt_without_images_is_refused_or_passed():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, [(0,), (0,)])
    bare = generated(model, inputs)[1]
    with la.wrap(model, la.VCD()) as lvlm, pytest.raises(la.LvlmAttnError, match="no image in the prompt"):
        generated(lvlm, inputs)
    with la.wrap(model, la.VCD(), no_image="pass") as lvlm:
        assert torch.equal(generated(lvlm, inputs)[1], bare)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"alpha": -1}, "alpha"),
        ({"beta": 1.5}, "beta"),
        ({"noise_step": 1000}, "noise_step"),
        ({"noise_step": 1.5}, "noise_step"),
        ({"noise_seed": -1}, "noise_seed"),
    ],
)
def test_parameters_out_of_range(given, word):
    with pytest.raises(la.LvlmAttnError, match=f"VCD: {word}"):
        la.VCD(**given)


def test_report_counts_the_choices_that_changed():
    model = model_of("llava")
    inputs = tiny_inputs("llava", model, BATCH)
    with la.wrap(model, la.VCD(alpha=0, beta=0.2)) as lvlm:
        generated(lvlm, inputs)
        assert lvlm.report().rows == ([{"views": 1, "tokens": 15, "likeliest_changed": 0}],)

    class Turned(la.VCD):
        def fuse(self, main, views, step):
            return -main

    with la.wrap(model, Turned()) as lvlm:
        generated(lvlm, inputs)
    assert lvlm.report().rows == (
        [{"views": 1, "tokens": 15, "likeliest_changed": 10}],
    )  # the row without an image stays
    assert "likeliest_changed" in str(lvlm.report())


def test_written_form():
    text = "vcd:alpha=0.5,beta=0.2,noise_step=700,noise_seed=3"
    assert str(la.parse(text)[0]) == text
    assert la.parse("vcd") == (la.VCD(),)


@pytest.mark.parametrize("decode", ["greedy", "sample"])
def test_in_an_evaluation_rows_do_not_depend_on_their_batch(decode):
    model, processor = la.load("toy")
    from lvlm_attn.toy import scenes

    images = [scene.image for scene in scenes("dev", 2)]
    prompts = ["Is there a dog in the image?", "Describe this image."]
    with ModelAnswerer(model, processor, [la.VCD()], Decoding(decode, 5), asks_yes_no=True) as answerer:
        together = answerer.answer(images, prompts, [3, 4])
        alone = [answerer.answer([images[k]], [prompts[k]], [3 + k])[0] for k in range(2)]
    for one, other in zip(together, alone):
        assert (one.raw_text, one.n_prompt_tokens) == (other.raw_text, other.n_prompt_tokens)
        assert one.first_token == pytest.approx(other.first_token, abs=1e-5)
