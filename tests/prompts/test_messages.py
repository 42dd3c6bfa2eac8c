"""What may be a prompt, and that the chat template is put around it once."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import lvlm_attn as la
from lvlm_attn.prompts.chat import encode_prompts, encode_texts
from lvlm_attn.prompts.messages import read_prompts
from lvlm_attn.prompts.request import Request
from lvlm_attn.prompts.template import Marks, without_image_tokens
from lvlm_attn.wrapping import target_of
from tests.tiny_processors import PICTURES, tiny_processor

QUESTION = "Is there a dog in the image?"
SHOWN = f"USER: <image>\n{QUESTION} ASSISTANT:"


@pytest.fixture(scope="module")
def toy():
    return la.load("toy")


@pytest.fixture
def picture():
    return Image.new("RGB", (64, 64), (20, 120, 30))


def texts(toy, images, prompts):
    return Request.of_prompts(target_of(*toy), images, prompts).texts


def words(toy, images, prompts):
    """What the model is sent, with every run of image tokens as one."""
    request = Request.of_prompts(target_of(*toy), images, prompts)
    token = toy[1].image_token
    said = []
    for ids, mask in zip(request.inputs["input_ids"], request.inputs["attention_mask"]):
        text = toy[1].tokenizer.decode(ids[mask.bool()])
        while f"{token} {token}" in text or token + token in text:
            text = text.replace(f"{token} {token}", token).replace(token + token, token)
        said.append(text)
    return said


def test_text_alone_gets_the_template_once(toy):
    """It once read "USER: USER: ... ASSISTANT: ASSISTANT:"."""
    asked = "Is there a dog?"
    assert texts(toy, None, [asked]) == [f"USER: {asked} ASSISTANT:"]
    (sent,) = words(toy, None, [asked])
    assert sent.count("USER") == sent.count("ASSISTANT") == 1
    encoded = encode_prompts(toy[1], None, [asked])["input_ids"]
    plain = toy[1](text=[f"USER: {asked} ASSISTANT:"], return_tensors="pt")["input_ids"]
    assert encoded.tolist() == plain.tolist()


def test_text_beside_pictures_gets_the_template_once(toy, picture):
    sent = words(toy, [picture, None], [QUESTION, "Is there a dog?"])
    assert [one.count("USER") for one in sent] == [1, 1]
    assert [one.count("ASSISTANT") for one in sent] == [1, 1]


def test_what_generate_asks_of_text_alone_is_what_the_bare_model_is_asked(toy):
    model, processor = toy
    inputs = processor(text=["USER: Is there a dog? ASSISTANT:"], return_tensors="pt")
    want = model.generate(**inputs, max_new_tokens=3, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    with la.wrap(model, processor=processor) as lvlm:
        got = lvlm.generate(prompts=["Is there a dog?"], max_new_tokens=3, do_sample=False)
    assert got == [processor.tokenizer.decode(want[0], skip_special_tokens=True).strip()]


@pytest.mark.parametrize(
    "prompt",
    [f"<image>\n{QUESTION}", f"<image>{QUESTION}", f"{QUESTION}\n<image>", f" <image>\n\n{QUESTION} "],
)
def test_an_image_token_in_a_question_keeps_the_template(toy, picture, prompt):
    """It once dropped it, and the question was asked bare."""
    assert texts(toy, [picture], [prompt]) == [SHOWN]


def test_a_ready_prompt_is_taken_as_it_is(toy, picture):
    ready = f"A chat. {SHOWN} Yes </s>USER: And a cat? ASSISTANT:"
    assert texts(toy, [picture], [ready]) == [ready]
    assert texts(toy, None, ["USER: Is there a dog? ASSISTANT:"]) == ["USER: Is there a dog? ASSISTANT:"]


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_images_stand_where_the_question_says(name):
    processor = tiny_processor(name)
    (chat,) = read_prompts(processor, [PICTURES[:2]], ["is <image> left of <image> ?"])
    mark = "<img> <image> </img> " if name == "qwen2_5_vl" else "<image> "
    assert chat.text(processor) == f"<s> USER: is {mark} left of {mark} ? ASSISTANT:"
    (chat,) = read_prompts(processor, [PICTURES[0]], [f"{mark}is there a dog ?"])
    assert chat.text(processor) == f"<s> USER: {mark}is there a dog ? ASSISTANT:"
    assert chat.question == "is there a dog ?"


def in_base64(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_list_of_messages_is_a_conversation(toy, picture, tmp_path):
    """It once was asked as Python writes a list."""
    picture.save(tmp_path / "a.png")
    packed = in_base64(picture)
    sources = [
        {"image": picture},
        {"image": str(tmp_path / "a.png")},
        {"path": tmp_path / "a.png"},
        {"url": (tmp_path / "a.png").as_uri()},
        {"base64": packed},
        {"url": f"data:image/png;base64,{packed}"},
    ]
    parts = [{"type": "image", **source} for source in sources]
    parts += [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{packed}"}}]
    for part in parts:
        chat = [{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}]
        for prompts in (chat, [chat]):
            request = Request.of_prompts(target_of(*toy), None, prompts)
            assert request.texts == [SHOWN]
            assert request.questions == [QUESTION]
            assert np.array_equal(np.asarray(request.images[0][0]), np.asarray(picture))
    for content in (QUESTION, [QUESTION], [{"type": "image"}, {"type": "text", "text": QUESTION}]):
        assert texts(toy, [picture], [[{"role": "user", "content": content}]]) == [SHOWN]


def test_several_turns_with_pictures_of_their_own(toy, picture):
    other = Image.new("RGB", (64, 64), "red")
    chat = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}],
        },
        {"role": "assistant", "content": "Yes"},
        {"role": "user", "content": [{"type": "text", "text": "And here?"}, {"type": "image"}]},
    ]
    request = Request.of_prompts(target_of(*toy), [other], [chat])
    end = toy[1].tokenizer.eos_token
    first = SHOWN.replace("<image>", "Image 1: <image>")  # the toy's template numbers several pictures
    assert request.texts == [f"Be brief. {first} Yes{end}USER: Image 2: <image>\nAnd here? ASSISTANT:"]
    assert [image.getpixel((0, 0)) for image in request.images[0]] == [(20, 120, 30), (255, 0, 0)]
    assert request.questions == ["And here?"]
    assert request.batch == 1


def test_messages_and_questions_in_one_batch_equal_each_alone(toy, picture):
    chat = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}
    ]
    model, processor = toy
    with la.wrap(model, la.VHR(), processor=processor, no_image="pass") as lvlm:
        both = lvlm.generate(images=[None, picture], prompts=[chat, QUESTION], max_new_tokens=4)
        alone = lvlm.generate(images=picture, prompts=QUESTION, max_new_tokens=4)
        (single,) = lvlm.generate(prompts=chat, max_new_tokens=4)
    assert both == alone * 2
    assert single == alone[0]


@pytest.mark.parametrize(
    ("images", "prompts", "message"),
    [
        (None, [5], "prompt 0 is 5 of type int"),
        (None, [None], "prompt 0 is None of type NoneType"),
        (None, ["x", b"y"], "prompt 1 is b'y' of type bytes"),
        (None, {"role": "user", "content": "x"}, "prompts is .* of type dict"),
        (None, 3.5, "prompts is 3.5 of type float"),
        (None, [], "no prompts"),
        (None, [["x"]], "prompt 0 is .* of type list"),
        (None, [[]], "prompt 0 is .* of type list"),
        (None, ["<image> what?"], "places for 1 images .* and 0 images"),
        ("p", ["<image> and <image>?"], "places for 2 images .* and 1 images"),
        ("p", ["USER: what? ASSISTANT:"], "is ready, .* and has 0"),
        (None, [SHOWN], "is ready, .* and has 1"),
        (None, [[{"role": "user"}]], "needs a 'role', as text, and a 'content'"),
        (None, [[{"role": 5, "content": "x"}]], "needs a 'role', as text"),
        (None, [[{"role": "user", "content": 5}]], "content of message 0 of prompt 0 is 5 of type int"),
        (None, [[{"role": "user", "content": [5]}]], "has the part 5"),
        (None, [[{"role": "user", "content": [{"type": "video"}]}]], "has the part .*video"),
        (None, [[{"role": "user", "content": [{"type": "text"}]}]], "has the part"),
        (None, [[{"role": "user", "content": [{"type": "image"}]}]], "no image is left for it"),
        (
            None,
            [[{"role": "user", "content": [{"type": "image", "image": 5}]}]],
            "image of message 0 .* 5 of type int",
        ),
        (None, [[{"role": "user", "content": "<image> x"}]], "a part of its own"),
        (None, [[{"role": "assistant", "content": "x"}]], "does not end with a question"),
        (
            None,
            [[{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]],
            "does not end with a question",
        ),
        (
            "p",
            [[{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]],
            "was given 1 image, and its messages have places for 0; put",
        ),
        (["p", "p"], ["x"], "2 images and 1 prompts"),
        ([5], ["x"], "image 0 of prompt 0 is 5 of type int"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_in_one_sentence(toy, picture, images, prompts, message):
    given = [picture if one == "p" else one for one in images] if isinstance(images, list) else images
    given = [picture] if given == "p" else given
    with pytest.raises(la.LvlmAttnError, match=message) as caught:
        read_prompts(toy[1], given, prompts)
    assert "\n" not in str(caught.value)


class Shows:
    """A processor whose template is a function of turns."""

    chat_template, image_token = "x", "<image>"

    def __init__(self, template):
        self.apply_chat_template = lambda turns, **options: template(turns)


def test_a_template_for_strings_alone_gets_strings():
    """Given parts, it would write out Python's list of them."""
    processor = Shows(lambda turns: "".join(f"[{turn['role']}]{turn['content']}" for turn in turns))
    (chat,) = read_prompts(processor, [PICTURES[0]], ["what?"])
    assert chat.text(processor) == "[user]<image>\nwhat?"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (lambda turns: "nothing", "leaves out some of their words"),
        (lambda turns: turns[-1]["content"][-1]["text"], "leaves out some of their words or images"),
        (lambda turns: 1 / 0, "division by zero"),
    ],
)
def test_a_template_that_fails_is_one_sentence(template, message):
    with pytest.raises(la.LvlmAttnError, match=message):
        read_prompts(Shows(template), [PICTURES[0]], ["what?"])[0].text(Shows(template))


class Begins:
    """A tokenizer that puts its own beginning of sequence in front, as Gemma's does."""

    bos_token, bos_token_id, padding_side = "<bos>", 1, "right"

    def __call__(self, text=None, **options):
        listed = [text] if isinstance(text, str) else text
        found = [[1, *([1] * one.count("<bos>")), 7] for one in listed]
        return {"input_ids": found[0] if isinstance(text, str) else found}


def test_the_beginning_of_sequence_is_written_once():
    """Templates write it, and tokenizers put it in front."""
    assert encode_texts(Begins(), [[], []], ["<bos>user x", "user y"])["input_ids"] == [[1, 7], [1, 7]]


@pytest.mark.parametrize(
    ("text", "want", "count"),
    [
        ("Is there a dog?", "Is there a dog?", 0),
        ("<image>\nIs there a dog?", "Is there a dog?", 1),
        ("Is there <image> a dog? <image>", "Is there a dog?", 2),
        ("<|vision_start|><|image_pad|><|vision_end|>Why?", "Why?", 1),
        ("<|image_pad|> <image> Why?", "Why?", 2),
        ("<image>", "", 1),
    ],
)
def test_image_tokens_are_taken_out_of_questions(text, want, count):
    marks = Marks("", "", "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")
    assert without_image_tokens(text, marks) == (want, count)
