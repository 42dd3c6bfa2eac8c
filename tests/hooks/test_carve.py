"""CARVE against maps made from transformers' own float64 weights, and its invariants."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

import lvlm_attn as la
from lvlm_attn.hooks.carve import CARVE
from lvlm_attn.maps.contrast import GENERAL
from lvlm_attn.maps.geometry import levels_of
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.attention_oracle import last_rows, shapes_of, split_blocks
from tests.maps.test_reading import fail, state
from tests.oracle_setup import generate
from tests.tiny import tiny_model
from tests.tiny_processors import NAMES, PICTURES, QUESTIONS, tiny_processor

OPTIONS = {"max_new_tokens": 3, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
LAYERS = (1, 2)
MODES = ("first", "last", "all")


@cache
def model_of(name):
    """Shared between tests, which leave it as it was."""
    return tiny_model(name)


def run(name, item, rows=(0, 1), images=None, questions=None, **options):
    """New tokens, their logits, and what CARVE found."""
    images = [PICTURES[row] for row in rows] if images is None else images
    questions = [QUESTIONS[row] for row in rows] if questions is None else questions
    with la.wrap(model_of(name), item, processor=tiny_processor(name)) as lvlm:
        out = lvlm.generate(images=images, prompts=questions, **OPTIONS | options)
    return out.sequences[:, -len(out.logits) :], torch.stack(out.logits, 1), lvlm.details.get("CARVE")


def plain(name, images, questions):
    return run(name, CARVE(p=1), images=images, questions=questions)


def request_of(name, image, question):
    return Request.of_prompts(target_of(model_of(name), tiny_processor(name)), [image], [question])


def records(name, image, question, steps):
    """Attention of the first `steps` greedy steps, `(steps, layers, image tokens)` in float64."""
    request = request_of(name, image, question)
    tokens = generate(request.target.model, request.inputs, max(steps, 1))[0][0].tolist()
    rows = np.stack([last_rows(name, request.inputs, LAYERS, tokens[:step]) for step in range(steps)])
    return request, rows


def true_map(name, image, question, mode, steps=3, lam=1e-8):
    """The map of one image: contrast, layers and steps added up, every part spread over the image by Pillow."""
    count = 1 if mode == "first" else steps
    request, asked = records(name, image, question, count)
    _, told = records(name, image, GENERAL, count)
    ratio = asked / (told + lam)
    if mode == "last":
        ratio = ratio[-1:]
    total = (ratio * np.arange(1, len(ratio) + 1)[:, None, None]).sum(0)
    blocks = [block.sum(0) for block in split_blocks(total, shapes_of(request, 0))]
    levels = levels_of(
        request.layout.grids[0][0], image.size, request.target.model.config, tiny_processor(name)
    )
    values = np.zeros((image.height, image.width))
    for block, level in zip(blocks, levels, strict=True):
        frame = level.frame
        # Pillow spreads a grid over a whole picture, so the frame is drawn large and the image read from it.
        scale = 16
        size = (round((frame.right - frame.left) * scale), round((frame.bottom - frame.top) * scale))
        large = Image.fromarray(block.astype(np.float32), "F").resize(size, Image.Resampling.BILINEAR)
        drawn = np.asarray(large)
        for y in range(image.height):
            for x in range(image.width):
                if frame.left <= x + 0.5 < frame.right and frame.top <= y + 0.5 < frame.bottom:
                    row = min(int((y + 0.5 - frame.top) * scale), size[1] - 1)
                    col = min(int((x + 0.5 - frame.left) * scale), size[0] - 1)
                    values[y, x] += drawn[row, col]
    return values


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*NAMES, "llava_onevision"])
def test_maps_equal_the_definition(name, mode):
    """Attention, contrast, steps and layers against weights of whole forwards."""
    _, _, details = run(name, CARVE(mode=mode, layers=LAYERS, steps=3))
    for row in (0, 1):
        want = true_map(name, PICTURES[row], QUESTIONS[row], mode)
        got = details[row][0].map
        # Reading a drawn map at the nearest of 16 points per pixel is off by up to a sixteenth of its slope.
        assert np.abs(got - want).max() < 0.04 * (want.max() - want.min()) + 1e-9
        assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_refined_image_follows_from_the_map(name):
    """Threshold, regions, black, crop and enlargement from the map, and the answer from the refined image."""
    item = CARVE(p=0.3, K=2, mode="first", fit_crop=False)
    tokens, logits, details = run(name, item)
    for row in (0, 1):
        found = details[row][0]
        image = np.asarray(PICTURES[row])
        seen = found.map > 0
        mask = seen & (found.map >= np.quantile(found.map[seen], 0.7))
        label, count = ndimage.label(mask)
        sums = [found.map[label == number].sum() for number in range(1, count + 1)]
        keep = [number + 1 for number in np.argsort(sums)[::-1][:2]]
        mask = np.isin(label, keep)
        assert np.array_equal(found.mask, mask)
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
        assert found.box == box
        crop = Image.fromarray((image * mask[..., None])[box[1] : box[3], box[0] : box[2]])
        scale = max(image.shape[1] / crop.width, image.shape[0] / crop.height)
        scale = min(scale, 8, (4 * mask.size / (crop.width * crop.height)) ** 0.5)
        size = (round(crop.width * scale), round(crop.height * scale))
        assert np.array_equal(
            np.asarray(found.image), np.asarray(crop.resize(size, Image.Resampling.LANCZOS))
        )
    again, want, _ = plain(name, [row[0].image for row in details], QUESTIONS[:2])
    assert torch.equal(tokens, again)
    assert torch.equal(logits, want)


@pytest.mark.parametrize("name", NAMES)
def test_p_of_one_equals_the_plain_answer(name):
    model = model_of(name)
    inputs = Request.of_prompts(target_of(model, tiny_processor(name)), PICTURES[:2], QUESTIONS[:2]).inputs
    want = model.generate(**inputs, **OPTIONS)
    tokens, logits, _ = run(name, CARVE(p=1))
    assert torch.equal(tokens, want.sequences[:, -3:])
    assert torch.equal(logits, torch.stack(want.logits, 1))
    with torch.no_grad():
        bare = model(**inputs).logits
        with la.wrap(model, CARVE(p=1)):
            assert torch.equal(model(**inputs).logits, bare)
    changed, _, _ = run(name, CARVE(p=0.2, mode="first"))
    assert not torch.equal(changed, tokens)  # so the equality can fail


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_general_question_keeps_the_image(name, mode):
    """Asked for a description, the contrast is 1 everywhere and nothing is taken away."""
    images, questions = [PICTURES[2]], [GENERAL]
    tokens, logits, details = run(
        name, CARVE(mode=mode, lam=0, p=0.2, steps=3), images=images, questions=questions
    )
    found = details[0][0]
    assert np.allclose(found.map, found.map[0, 0], rtol=1e-5)
    assert found.mask.all()
    assert found.image is images[0]
    want, want_logits, _ = plain(name, images, questions)
    assert torch.equal(tokens, want)
    assert torch.equal(logits, want_logits)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_batch_rows_equal_single_rows(name, mode):
    item = CARVE(mode=mode, steps=3)
    tokens, logits, details = run(name, item, rows=(0, 1, 2))
    for row in (0, 1, 2):
        one, alone, seen = run(name, item, rows=(row,))
        assert torch.equal(tokens[row], one[0])
        assert seen[0][0].box == details[row][0].box
        assert np.allclose(seen[0][0].map, details[row][0].map, rtol=1e-3)
        assert (logits[row] - alone[0]).abs().max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_from_the_prompt_before(name):
    item = CARVE(mode="first")
    tokens, logits, details = run(name, item, rows=(1,))
    with la.wrap(model_of(name), item, processor=tiny_processor(name)) as lvlm:
        lvlm.generate(images=[PICTURES[2]], prompts=[QUESTIONS[0]], **OPTIONS)
        out = lvlm.generate(images=[PICTURES[1]], prompts=[QUESTIONS[1]], **OPTIONS)
        assert np.array_equal(lvlm.details["CARVE"][0][0].map, details[0][0].map)
    assert torch.equal(out.sequences[:, -3:], tokens)
    assert torch.equal(torch.stack(out.logits, 1), logits)


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_leaves_the_model_as_it_was(name):
    model = model_of(name)
    run(name, CARVE(mode="first"), rows=(0,))
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = torch.tensor([[5]])
    before = state(model)
    for layer in (0, 3):  # while the attention is read, and while the answer is generated
        handle = model.model.language_model.layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broken layer"):
            run(name, CARVE(mode="first", layers=[1]))
        handle.remove()
        assert state(model)[:2] == before[:2]


@pytest.mark.parametrize("name", NAMES)
def test_original_plus_refined(name):
    item = CARVE(mode="first", images="original_plus_refined")
    tokens, _, details = run(name, item)
    refined = [row[0].image for row in details]
    pairs = [[image, new] for image, new in zip(PICTURES[:2], refined)]
    want, _, _ = plain(name, pairs, QUESTIONS[:2])
    assert torch.equal(tokens, want)
    assert not CARVE(p=1, images="original_plus_refined").is_neutral()
    with pytest.raises(la.LvlmAttnError, match="without '<image>'"):
        run(name, item, rows=(0,), questions=["is <image> a cat ?"])


@pytest.mark.parametrize("name", NAMES)
def test_several_images_share_one_threshold(name):
    images = [[PICTURES[0], PICTURES[2]], None, PICTURES[1]]
    item = CARVE(mode="first", p=0.2, K=1)
    tokens, _, details = run(name, item, rows=(0, 1, 2), images=images)
    assert [len(row) for row in details] == [2, 0, 1]
    first, second = details[0]
    assert int(first.mask.any()) + int(second.mask.any()) == 1  # one region over both
    untouched = first if second.mask.any() else second
    assert untouched.image is (PICTURES[0] if second.mask.any() else PICTURES[2])
    want, _, _ = plain(name, [[first.image, second.image], None, details[2][0].image], QUESTIONS)
    assert torch.equal(tokens, want)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_own_prompts_are_taken_as_they_are(name):
    """A prompt that is ready shares less, or nothing, with the general instruction's."""
    marks = ("<img> ", " </img>") if name == "qwen2_5_vl" else ("", "")
    question = f"<s> USER: a cat {marks[0]}<image>{marks[1]} is there a cat ? ASSISTANT:"
    _, _, details = run(name, CARVE(mode="first", layers=LAYERS), rows=(0,), questions=[question])
    want = true_map(name, PICTURES[0], question, "first")
    got = details[0][0].map
    assert np.abs(got - want).max() < 0.04 * (want.max() - want.min())


def test_suffix_on_the_general_instruction():
    asked = []
    item = CARVE(mode="first", suffix_on_general=True)
    tokens = tiny_processor("llava").tokenizer
    model = model_of("llava")
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(tokens.decode(kwargs["input_ids"][0])), with_kwargs=True
    )
    run("llava", item, rows=(0,))
    handle.remove()
    assert any(
        "general description of the image. Answer the question using a single word" in text for text in asked
    )


def test_fit_shows_the_whole_crop_to_a_processor_that_cuts():
    item = CARVE(mode="first", p=0.1, K=1)
    _, _, squared = run("llava", item, rows=(0, 1, 2))
    _, _, free = run("llava", dataclasses.replace(item, fit_crop=False), rows=(0, 1, 2))
    for with_fit, without in zip(squared, free):
        image = with_fit[0].image
        assert image.width == image.height == max(without[0].image.size)
    _, _, native = run("qwen2_5_vl", item, rows=(0, 1, 2))
    _, _, same = run("qwen2_5_vl", dataclasses.replace(item, fit_crop=False), rows=(0, 1, 2))
    assert [row[0].image.size for row in native] == [row[0].image.size for row in same]


def test_the_image_is_encoded_once_for_both_prompts():
    model, calls = model_of("llava"), []
    handle = model.model.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))
    run("llava", CARVE(mode="all", steps=3))
    handle.remove()
    assert len(calls) == 2  # once for both prompts, once for the refined images


def test_with_other_methods_in_one_wrap():
    name = "llava"
    vhr = la.VHR(alpha=3.0, layers=[1, 2])
    with la.wrap(model_of(name), vhr, CARVE(mode="first"), processor=tiny_processor(name)) as lvlm:
        got = lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=3)
        refined = [row[0].image for row in lvlm.details["CARVE"]]
    with la.wrap(model_of(name), vhr, processor=tiny_processor(name)) as lvlm:
        assert lvlm.generate(images=refined, prompts=QUESTIONS[:2], max_new_tokens=3) == got
    items = [CARVE(mode="first"), la.AGLA(control=True, beta=0.5)]
    with la.wrap(model_of(name), *items, processor=tiny_processor(name)) as lvlm:
        both = lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=3)
    with la.wrap(model_of(name), CARVE(mode="first"), processor=tiny_processor(name)) as lvlm:
        assert lvlm.generate(images=PICTURES[:2], prompts=QUESTIONS[:2], max_new_tokens=3) == both


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"p": 0}, "p=0 must be a number above 0"),
        ({"p": 1.2}, "at most 1"),
        ({"K": 0}, "K=0 must be a whole number"),
        ({"mode": "fisrt"}, "Did you mean 'first'"),
        ({"images": "refined"}, "Did you mean 'refined_only'"),
        ({"lam": -1}, "lam"),
        ({"steps": 1.5}, "steps"),
        ({"general": " "}, "general"),
        ({"max_zoom": 0.5}, "max_zoom"),
        ({"layers": [9]}, "layer 9 is out of range; this model has 4"),
    ],
)
def test_bad_parameters(bad, says):
    """Layers out of range among them: nothing is left out without a word."""
    with pytest.raises(la.LvlmAttnError, match=says) as caught, la.wrap(model_of("llava"), CARVE(**bad)):
        pass
    assert len(str(caught.value).splitlines()) == 1


def test_what_it_cannot_do_is_said():
    model, processor = model_of("llava"), tiny_processor("llava")
    inputs = Request.of_prompts(target_of(model, processor), PICTURES[:1], QUESTIONS[:1]).inputs
    with la.wrap(model, CARVE(), processor=processor) as lvlm:
        with pytest.raises(la.LvlmAttnError, match="images="):
            lvlm.generate(**inputs, max_new_tokens=2)
        with pytest.raises(la.LvlmAttnError, match=r"lvlm\.generate"):
            model.generate(**inputs, max_new_tokens=2)
        with pytest.raises(la.LvlmAttnError, match="no image"):
            lvlm.generate(prompts=QUESTIONS[:1], images=[None], max_new_tokens=2)
    with la.wrap(model, CARVE()) as lvlm, pytest.raises(la.LvlmAttnError, match="processor"):
        lvlm.generate(images=PICTURES[:1], prompts=QUESTIONS[:1])


def test_written_form():
    (item,) = la.parse("carve:p=0.4,mode=first")
    assert item == CARVE(p=0.4, mode="first")
    assert la.parse(str(item)) == (item,)
    for text in ("carve", "carve:p=0.2,K=3,lam_rel=0.1,layers=20..25", "carve:images=original_plus_refined"):
        (item,) = la.parse(text)
        assert la.parse(str(item)) == (item,)
