"""Losses and gradients of the lean language model are those of transformers' own, in one process or in parts."""

import numpy as np
import pytest
import torch

from lvlm_attn.toy.data import TextConfig, Turn, draw_batch, encode
from lvlm_attn.toy.gaze import gaze_loss
from lvlm_attn.toy.language_stage import answer_loss, answers_loss, embed_batch, name_weights
from lvlm_attn.toy.lean_text import lean_hidden
from lvlm_attn.toy.model import ModelSizes, build_model
from lvlm_attn.toy.pair_texts import draw_pair_batch
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.team import Team
from lvlm_attn.toy.tokenizer import build_tokenizer, token_ids

SIZES = ModelSizes(image=48, vision_width=32, vision_layers=1, vision_heads=2, width=64, layers=5, inner=96)
SCENES = [
    SceneFacts("kitchen", (Fact("fork", 0.1, 0.1, 0.1, 1, 1), Fact("cup", 0.8, 0.6, 0.1, 1, 1))),
    SceneFacts("farm", (Fact("dog", 0.4, 0.9, 0.1, 1, 1),)),
    SceneFacts("farm", (Fact("sheep", 0.4, 0.2, 0.1, 1, 1), Fact("dog", 0.7, 0.2, 0.1, 1, 1))),
    SceneFacts("kitchen", (Fact("cup", 0.5, 0.5, 0.1, 1, 1),)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    made = build_model(SIZES, token_ids(tokenizer), seed=0)
    made.set_attn_implementation("eager")
    return made


def drawn(tokenizer, what):
    """A batch of one kind, and the features it needs."""
    rng = np.random.default_rng(3)
    generator = torch.Generator().manual_seed(1)
    kinds = {"yes_no": (1.0, 0.0), "caption": (0.0, 0.0)}
    kind, shares, pictures = what
    yes_no, places = kinds[kind]
    config = TextConfig(yes_no=yes_no, places=places, text_only=float(pictures == 0), turns=3)
    if pictures == 2:
        _, batch = draw_pair_batch(rng, tokenizer, SCENES, config, SIZES.patches, shares)
    else:
        _, batch = draw_batch(rng, tokenizer, SCENES, config, SIZES.patches, shares=shares)
    openings = len(batch.input_ids) // batch.shares
    if pictures == 0:
        return batch, None
    return batch, torch.randn(openings, pictures * SIZES.patches, SIZES.vision_width, generator=generator)


def seen_by(batch, features):
    """(openings, pictures, patches) categories: on every fourth patch one of a few that the scenes have."""
    if features is None:
        return None
    shape = (len(features), len(batch.image_starts), SIZES.patches)
    names = torch.tensor([vocabulary().index(name) for name in ("fork", "cup", "dog", "sheep")])
    drawn = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(2))
    return torch.where(torch.arange(SIZES.patches) % 4 == 0, names[drawn], len(vocabulary()))


def gradients(model, losses):
    """What the losses give together: their sum and its gradients."""
    model.zero_grad(set_to_none=True)
    total = sum(losses)
    total.backward()
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return float(total.detach()), found


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        assert torch.allclose(found[1][name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max())), name


CASES = [
    ("yes_no", 1, 1), ("caption", 1, 1), ("yes_no", 2, 1), ("caption", 3, 1),
    ("yes_no", 2, 2), ("caption", 4, 2), ("yes_no", 1, 0), ("caption", 2, 0),
]  # fmt: skip


@pytest.mark.parametrize("what", CASES, ids=lambda what: "-".join(map(str, what)))
def test_loss_and_gradients_are_those_of_the_plain_model(model, tokenizer, what):
    batch, features = drawn(tokenizer, what)
    weight = name_weights(tokenizer, 5.0) if what[0] == "caption" else None
    text = model.model.language_model
    embedded = embed_batch(model, batch, features)
    output = text(inputs_embeds=embedded, use_cache=False, output_attentions=True)
    logits = model.lm_head(output.last_hidden_state[:, :-1][batch.labels[:, 1:] != -100])
    plain, right = answers_loss(model, logits, batch, weight)
    seen = seen_by(batch, features)
    lean, figures = answer_loss(model, batch, features, weight, seen=seen)
    expected = {"right": right}
    if what[2]:
        no_sink = torch.zeros(embedded.shape[:2], dtype=torch.bool)
        looks, found = gaze_loss(output.attentions, batch, slice(None), no_sink, seen)
        plain, expected = plain + looks, {**expected, **found}
        assert figures["early"] > 0
        assert (figures.get("astray", 0) > 0) == (what[2] == 2)
        assert (figures["missed"] > 0) == (figures["unread"] > 0) == (what[0] == "yes_no")
        assert (figures["blind"] > 0) == (what[0] == "caption")
    assert figures == pytest.approx(expected, rel=1e-4)
    assert_same(gradients(model, [lean]), gradients(model, [plain]))


def test_looking_is_counted_at_words_of_the_picture_named_and_not_at_sinks(model, tokenizer):
    batch, _ = drawn(tokenizer, ("yes_no", 1, 2))
    rows, heads, length = len(batch.input_ids), 2, batch.input_ids.shape[1]
    weights = torch.zeros(rows, heads, length, length)
    weights[:, 1, :, batch.image_starts[1] + 3] = 0.75  # one head of two looks at the second picture
    weights[..., 0] = 0.25
    nowhere = torch.zeros(rows, length, dtype=torch.bool)
    _, found = gaze_loss([weights] * 3, batch, slice(None), nowhere, None)
    first = (batch.which[:, batch.first_word : -1] == 0).sum() / (
        batch.which[:, batch.first_word : -1] >= 0
    ).sum()
    assert found["early"] == pytest.approx(np.log(4) / 2, rel=1e-5)
    assert found["astray"] == pytest.approx(float(first) * np.log(4) / 2, rel=1e-5)
    sinks = nowhere.clone()
    sinks[:, batch.image_starts[1] + 3] = True
    _, none = gaze_loss([weights] * 3, batch, slice(None), sinks, None)
    assert none["early"] == none["astray"] == 0


def test_names_look_at_their_objects_and_answers_at_the_names(tokenizer):
    """By hand: one question about each picture of two, a cup in the second and none in the first."""
    turns = [
        Turn("In the second image, is there a cup?", "Yes", 1, is_there=True),
        Turn("In the first image, is there a cup?", "No", 0, is_there=False),
    ]
    batch = encode(tokenizer, [turns], patches=4, pictures=2)
    words = tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    names = [at for at, word in enumerate(words) if word == "cup"]
    answers = [words.index("Yes") - 1, words.index("No") - 1]
    cup, nothing = vocabulary().index("cup"), len(vocabulary())
    seen = torch.full((1, 2, 4), nothing)
    seen[0, 0, 3] = seen[0, 1, 1] = cup
    length = len(words)
    weights = torch.zeros(1, 4, length, length)
    weights[0, :, names[0], batch.image_starts[1] + 1] = 0.5
    weights[0, :, names[1], 0] = 0.25
    weights[0, :, answers[0], names[0]] = 0.125
    weights[0, :, answers[1], names[1]] = 1.0
    nowhere = torch.zeros(1, length, dtype=torch.bool)
    _, found = gaze_loss([weights] * 4, batch, slice(None), nowhere, seen)
    assert found["missed"] == pytest.approx((np.log(2) + np.log(4)) / 2)
    assert found["unread"] == pytest.approx(np.log(8) / 2)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("what", [("yes_no", 1, 1), ("caption", 2, 1), ("yes_no", 2, 2), ("caption", 1, 0)])
def test_parts_add_up_to_the_whole_and_none_is_nothing(model, tokenizer, what, size):
    batch, features = drawn(tokenizer, what)
    weight = name_weights(tokenizer, 5.0)
    seen = seen_by(batch, features)
    whole, figures = answer_loss(model, batch, features, weight, seen=seen)
    parts = [answer_loss(model, batch, features, weight, Team(rank, size), seen) for rank in range(size)]
    summed = {name: sum(part[1][name] for part in parts) for name in figures}
    assert summed == pytest.approx(figures, rel=1e-5)
    assert_same(gradients(model, [part[0] for part in parts]), gradients(model, [whole]))


def test_a_conversation_neither_sees_another_nor_what_comes_after(model):
    text = model.model.language_model
    generator = torch.Generator().manual_seed(0)
    opening = torch.randn(1, 5, 64, generator=generator)
    words = torch.randn(2, 6, 64, generator=generator)
    is_asked = torch.ones(2, 6, dtype=torch.bool)
    with torch.no_grad():
        before = lean_hidden(text, opening, words, is_asked)[0].view(2, 6, 64)
        words[1] += 1
        words[0, 4:] += 1
        after = lean_hidden(text, opening, words, is_asked)[0].view(2, 6, 64)
    assert torch.allclose(before[0, :4], after[0, :4], atol=1e-5)
    assert not torch.allclose(before[0, 4:], after[0, 4:], atol=1e-2)
    assert not torch.allclose(before[1], after[1], atol=1e-2)


def test_captions_look_at_what_they_are_about_to_name(tokenizer):
    """By hand: a caption of the second picture, whose dog is there and whose mouse is made up."""
    turn = Turn("Describe the second image.", "A dog and a mouse.", 1)
    batch = encode(tokenizer, [[turn]], patches=4, pictures=2)
    words = tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    before = words.index("dog") - 1
    seen = torch.full((1, 2, 4), len(vocabulary()))
    seen[0, :, 2] = vocabulary().index("dog")
    length = len(words)
    weights = torch.zeros(1, 4, length, length)
    weights[0, :, before, batch.image_starts[0] + 2] = 0.5  # the other picture's dog does not count
    weights[0, 0, before, batch.image_starts[1] + 2] = 0.25
    weights[0, 3, before, batch.image_starts[1] + 2] = 0.5
    nowhere = torch.zeros(1, length, dtype=torch.bool)
    _, found = gaze_loss([weights] * 5, batch, slice(None), nowhere, seen)
    assert found["blind"] == pytest.approx((np.log(4) + np.log(2)) / 2)
    assert found["missed"] == found["unread"] == 0


def test_captions_remember_what_they_have_named(tokenizer):
    turn = Turn("Describe the image.", "A dog, a cup and a mouse.")
    batch = encode(tokenizer, [[turn]], patches=4)
    words = tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    dog, cup, mouse = (words.index(name) for name in ("dog", "cup", "mouse"))
    length = len(words)
    weights = torch.zeros(1, 4, length, length)
    weights[0, 0, dog - 1, 0] = 0.5
    weights[0, 0, cup - 1, [dog, cup]] = 0.5  # what comes after cannot be meant
    weights[0, 0, mouse - 1, [dog, cup]] = 0.25
    nowhere = torch.zeros(1, length, dtype=torch.bool)
    seen = torch.full((1, 1, 4), len(vocabulary()))
    _, found = gaze_loss([weights] * 4, batch, slice(None), nowhere, seen)
    assert found["unsaid"] == pytest.approx(np.log(2))
