"""Grad-CAM of a tiny random BLIP against numerical derivatives of its own matching score."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
import transformers

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.matchers.blip import WEIGHTS, BlipMatcher, caption_text, grad_cam
from tests.tiny_processors import PICTURES

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "is",
    "there",
    "a",
    "dog",
    "cat",
    "in",
    "the",
    "image",
    "?",
]
PROMPTS = ["Is there a dog in the image?", "a cat", "Is the cat in?"]


@cache
def blip():
    """A matcher of four text layers, so that layer 2 is its middle one; the last word is the matching head's own."""
    torch.manual_seed(0)
    text = {
        "vocab_size": len(WORDS) + 2,
        "hidden_size": 16,
        "encoder_hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "bos_token_id": len(WORDS),
        "sep_token_id": 3,
        "eos_token_id": 3,
    }
    vision = {
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 18,
        "patch_size": 6,
    }
    config = transformers.BlipConfig(text_config=text, vision_config=vision, image_text_hidden_size=8)
    model = transformers.BlipForImageTextRetrieval(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.5 if "attention" in name else 0.3)
    return model.eval()


def save_blip(place):
    """Writes the matcher and its processor to a folder, as a user would have downloaded them."""
    (place / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = transformers.BertTokenizer(str(place / "vocab.txt"))
    size = {"height": 18, "width": 18}
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size=size), tokenizer)
    blip().save_pretrained(place)
    processor.save_pretrained(place)
    return str(place)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return save_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="session")
def matcher(folder):
    return BlipMatcher.load(folder)


def numbers(matcher, image, prompt):
    """Pixels, ids and mask of one pair in float64."""
    pixels = matcher.processor.image_processor([image], return_tensors="pt")["pixel_values"].double()
    tokens = matcher.processor.tokenizer([caption_text(prompt)], return_tensors="pt")
    return pixels, tokens["input_ids"], tokens["attention_mask"]


def scores(model, pixels, ids, mask, nudges):
    """The matching score with each of `nudges` `(n, heads, words, keys)` added to the attention of text layer 2."""
    ids = ids.repeat(len(nudges), 1)
    ids[:, 0] = len(WORDS) + 1
    inner = model.text_encoder.encoder.layer[2].crossattention.self
    handle = inner.dropout.register_forward_hook(lambda module, args, output: output + nudges)
    given = {
        "pixel_values": pixels.repeat(len(nudges), 1, 1, 1),
        "attention_mask": mask.repeat(len(nudges), 1),
    }
    with torch.no_grad():
        found = model(input_ids=ids, **given, use_itm_head=True).itm_score[:, 1]
    handle.remove()
    return found


def attention_of(model, pixels, ids, mask):
    """`(heads, words, keys)`: attention of text layer 2."""
    kept = []
    inner = model.text_encoder.encoder.layer[2].crossattention.self
    handle = inner.register_forward_hook(lambda module, args, output: kept.append(output[1]))
    scores(model, pixels, ids, mask, torch.zeros(1, 1, 1, 1))
    handle.remove()
    return kept[0][0]


def test_grad_cam_equals_numerical_derivatives(matcher):
    """Mean over heads and words of max(0, dy/dC) * C, with dy/dC from central differences."""
    model = copy.deepcopy(matcher.model).double()
    for prompt in PROMPTS[:2]:
        pixels, ids, mask = numbers(matcher, PICTURES[0], prompt)
        attention = attention_of(model, pixels, ids, mask)
        step = 1e-5
        nudges = step * torch.eye(attention.numel(), dtype=torch.float64).view(-1, *attention.shape)
        up, down = (scores(model, pixels, ids, mask, sign * nudges) for sign in (1, -1))
        slope = ((up - down) / (2 * step)).view(attention.shape)
        want = (slope.clamp(min=0) * attention)[:, 1:-1, 1:].mean((0, 1))
        relevance, _ = grad_cam(model, pixels, ids, mask)
        assert relevance.shape == (1, 3, 3)
        assert want.max() > 0
        assert (relevance.flatten() - want).abs().max() < 1e-5 * want.max()


def test_similarity_is_the_cosine_of_the_contrastive_heads(matcher):
    """The contrastive branch keeps the tokenizer's own first token."""
    for image, prompt in zip(PICTURES, PROMPTS):
        pixels, ids, mask = numbers(matcher, image, prompt)
        with torch.no_grad():
            want = matcher.model(
                input_ids=ids, pixel_values=pixels.float(), attention_mask=mask, use_itm_head=False
            ).itm_score[0, 0]
        assert abs(matcher(image, prompt)[1] - float(want)) < 1e-5


def test_the_matching_head_reads_its_own_token(matcher):
    """With the plain first token the score, and so the map, would be another."""
    pixels, ids, mask = numbers(matcher, PICTURES[0], PROMPTS[0])
    got, _ = grad_cam(matcher.model, pixels.float(), ids, mask)
    model = matcher.model
    size = model.text_encoder.config.vocab_size
    try:
        model.text_encoder.config.vocab_size = (
            int(ids[0, 0]) + 1
        )  # the id is told from the size of the vocabulary
        other, _ = grad_cam(model, pixels.float(), ids, mask)
    finally:
        model.text_encoder.config.vocab_size = size
    assert not torch.allclose(got, other, rtol=1e-3)


def test_relevance_is_never_negative(matcher):
    for image, prompt in zip(PICTURES, PROMPTS):
        relevance, similarity = matcher(image, prompt)
        assert relevance.shape == (3, 3)
        assert (relevance >= 0).all()
        assert relevance.max() > 0
        assert -1 <= similarity <= 1


def test_a_batch_is_its_pairs_one_by_one(matcher):
    """Padded words contribute nothing, and neither do other pairs."""
    together = matcher.match(PICTURES, PROMPTS)
    for (relevance, similarity), image, prompt in zip(together, PICTURES, PROMPTS):
        alone, same = matcher(image, prompt)
        assert np.allclose(relevance, alone, rtol=1e-4, atol=1e-9)
        assert abs(similarity - same) < 1e-6


def test_first_and_last_token_do_not_count(matcher, monkeypatch):
    """Attention of the first and the last token is left out: changing it leaves the map."""
    pixels, ids, mask = numbers(matcher, PICTURES[0], PROMPTS[0])
    plain, _ = grad_cam(matcher.model, pixels.float(), ids, mask)
    real = torch.autograd.grad

    def louder(rows):
        def grad(score, attention, *rest):
            (found,) = real(score, attention, *rest)
            found = found.clone()
            found[:, :, rows] += 5
            return (found,)

        return grad

    monkeypatch.setattr(torch.autograd, "grad", louder([0, -1]))
    assert torch.equal(grad_cam(matcher.model, pixels.float(), ids, mask)[0], plain)
    monkeypatch.setattr(torch.autograd, "grad", louder([1]))
    assert not torch.equal(grad_cam(matcher.model, pixels.float(), ids, mask)[0], plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_where_they_are_switched_off(matcher, mode):
    want, _ = matcher(PICTURES[0], PROMPTS[0])
    for parameter in matcher.model.parameters():
        parameter.requires_grad_(False)
    with mode():
        got, _ = matcher(PICTURES[0], PROMPTS[0])
    assert np.allclose(got, want, rtol=1e-6)
    assert all(parameter.grad is None for parameter in matcher.model.parameters())


def test_long_prompts_are_cut_at_35_tokens(matcher):
    long = " ".join(["dog"] * 45)
    relevance, _ = matcher(PICTURES[0], long)
    same, _ = matcher(PICTURES[0], " ".join(["dog"] * 33))
    assert np.array_equal(relevance, same)


def test_images_of_any_mode(matcher):
    grey = PICTURES[0].convert("L")
    assert np.allclose(matcher(grey, "a dog")[0], matcher(grey.convert("RGB"), "a dog")[0])


def test_text_is_cleaned_as_blip_was_trained():
    assert caption_text('What?  "A" dog!') == "what? a dog"
    assert caption_text("(see: #1; ~2.*)") == "see 1 2"
    assert len(caption_text("word " * 60).split()) == 50


def test_missing_weights_are_one_sentence(tmp_path):
    for name in (WEIGHTS, str(tmp_path)):
        with pytest.raises(LvlmAttnError) as caught:
            BlipMatcher.load(name)
        message = str(caught.value)
        assert "matcher='self'" in message
        assert len(message.splitlines()) == 1
        assert message.count(". ") == 0
