"""ICD: a longer, disturbed prompt beside the prompt, against an oracle that reads both whole in float64."""

import pytest
import torch
from PIL import Image

import lvlm_attn as la
from lvlm_attn.hooks.icd import CONFUSED
from lvlm_attn.prompts.request import Request
from lvlm_attn.wrapping import target_of
from tests.decoding.steps import (
    check_an_exception_restores,
    cut,
    double,
    error,
    full_logits,
    generated,
    model_of,
    with_words,
)
from tests.tiny import BOS, IMAGE, NAMES, tiny_inputs, tiny_rows

BATCH = [(1,), (2,), (0,)]
FEW = ["llava", "llava_next", "qwen2_5_vl"]
WORDS = [20, 21, 22, 23, 24, 25, 26]


class Tokenizer:
    """Reads any text as the same words."""

    def __init__(self, bos=BOS):
        self.bos_token_id = bos

    def encode(self, text, add_special_tokens):
        assert text == CONFUSED
        assert not add_special_tokens
        return WORDS


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_two_separate_recomputes(name):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.ICD(lam=0.6, beta=0.05), processor=Tokenizer()) as lvlm:
        tokens, logits = generated(lvlm, inputs)
    for index, row in enumerate(rows):
        main = full_logits(double(name), row, tokens[index])
        other = full_logits(double(name), with_words(row, WORDS, 1), tokens[index])
        want = cut(1.6 * main - 0.6 * other, main, 0.05)
        assert error(logits[index], want) < 2e-5
        assert error(1.6 * main - 0.6 * other, main) > 1e-2


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_without_a_first_token_the_words_stand_before_the_image(name):
    model = model_of(name)
    request = Request.of_tensors(target_of(model, Tokenizer(bos=None)), tiny_inputs(name, model, BATCH))
    view = request.with_instruction(CONFUSED, "ICD")
    for index, row in enumerate(tiny_rows(name, model, BATCH)):
        ids = row["input_ids"][0].tolist()
        place = ids.index(IMAGE) if IMAGE in ids else 0
        place -= IMAGE in ids and name in ("qwen2_5_vl",)  # in front of the marker too
        want = ids[:place] + WORDS + ids[place:]
        got = view.inputs["input_ids"][index][view.inputs["attention_mask"][index].bool()].tolist()
        assert got == want


@pytest.mark.parametrize("name", FEW)
def test_neutral_settings_keep_bits(name):
    model = model_of(name)
    inputs = tiny_inputs(name, model, BATCH)
    bare = generated(model, inputs)
    with la.wrap(model, la.ICD(lam=0, beta=0)) as lvlm:
        assert torch.equal(generated(lvlm, inputs)[1], bare[1])
        assert torch.equal(generated(model, inputs)[1], bare[1])
    with la.wrap(model, la.ICD(lam=0), processor=Tokenizer()) as lvlm:
        _, logits = generated(lvlm, inputs)
        assert error(logits, cut(bare[1].double(), bare[1].double(), 0.1)) < 1e-5


@pytest.mark.parametrize("name", FEW)
def test_batch_rows_equal_single_rows_and_nothing_is_left_of_the_sample_before(name):
    model = model_of(name)
    inputs, rows = tiny_inputs(name, model, BATCH), tiny_rows(name, model, BATCH)
    with la.wrap(model, la.ICD(), processor=Tokenizer()) as lvlm:
        tokens, logits = generated(lvlm, inputs)
        for index, row in enumerate(rows):
            single, alone = generated(lvlm, row)
            assert torch.equal(single[0], tokens[index])
            assert error(logits[index], alone[0].double()) < 5e-5
        assert torch.equal(generated(lvlm, inputs)[1], logits)


@pytest.mark.parametrize("name", FEW)
def test_an_exception_leaves_the_model_as_it_was(name):
    check_an_exception_restores(name, BATCH, la.ICD, processor=Tokenizer())


def test_the_processor_is_needed():
    model = model_of("llava")
    with (
        la.wrap(model, la.ICD()) as lvlm,
        pytest.raises(la.LvlmAttnError, match="processor=processor") as caught,
    ):
        generated(lvlm, tiny_inputs("llava", model, BATCH))
    assert "\n" not in str(caught.value)


class Shows:
    """A processor whose chat template shows system messages."""

    chat_template = "{{ messages }}"
    image_token = "<image>"

    def __init__(self, processor):
        self._processor = processor

    def __getattr__(self, name):
        return getattr(self._processor, name)

    def __call__(self, **options):
        return self._processor(**options)

    def apply_chat_template(self, turns, **options):
        system = [turn["content"][0]["text"] for turn in turns if turn["role"] == "system"]
        user = next(turn for turn in turns if turn["role"] == "user")
        begin = f"{system[0]} " if system else ""
        return f"{begin}USER: <image>\n{user['content'][-1]['text']} ASSISTANT:"


def test_a_template_that_shows_system_messages_gets_one():
    model, processor = la.load("toy")
    image = Image.new("RGB", (64, 64), (20, 120, 30))
    shows = Shows(processor)
    request = Request.of_prompts(target_of(model, shows), [image], ["Describe this image."])
    view = request.with_instruction("Describe it all.", "ICD")
    assert view.texts == ["Describe it all. USER: <image>\nDescribe this image. ASSISTANT:"]
    # A full prompt is no question: the words are put in by their tokens.
    full = Request.of_prompts(target_of(model, shows), [image], request.texts)
    other = full.with_instruction("Describe it all.", "ICD")
    assert other.texts is None
    added = other.inputs["input_ids"].shape[1] - full.inputs["input_ids"].shape[1]
    assert added == len(processor.tokenizer.encode("Describe it all.", add_special_tokens=False))


def test_questions_and_pictures_are_answered():
    model, processor = la.load("toy")
    images = [Image.new("RGB", (64, 64), (20, 120, 30))] * 2
    prompts = ["Is there a dog in the image?", "Describe this image."]
    with la.wrap(model, la.ICD(), processor=processor) as lvlm:
        together = lvlm.generate(images=images, prompts=prompts, max_new_tokens=4, do_sample=False)
        alone = [
            lvlm.generate(images=[image], prompts=[prompt], max_new_tokens=4, do_sample=False)[0]
            for image, prompt in zip(images, prompts)
        ]
    assert together == alone


@pytest.mark.parametrize(
    ("given", "word"), [({"lam": -1}, "lam"), ({"beta": 2}, "beta"), ({"prefix": " "}, "prefix")]
)
def test_parameters_out_of_range(given, word):
    with pytest.raises(la.LvlmAttnError, match=f"ICD: {word}"):
        la.ICD(**given)


@pytest.mark.parametrize(
    "prefix", ["Be vague", "Guess, and add more + more [of it]", "Don't look", 'Say "no", twice']
)
def test_written_form(prefix):
    item = la.ICD(lam=0.5, prefix=prefix)
    assert la.parse(f"vhr+{item}+var")[1] == item
    assert str(la.parse(str(item))[0]) == str(item)
