"""Two pictures in one prompt: true texts in known words, the template's tokens, and each picture in its place."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from lvlm_attn.toy.data import TextConfig, Turn, encode
from lvlm_attn.toy.language_stage import embed_batch
from lvlm_attn.toy.model import ModelSizes, build_model
from lvlm_attn.toy.pair_texts import about, draw_pair_batch, pair_turns, pair_yes_no_turns, pick_pairs
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.prompts import QUESTIONS, plural
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.tokenizer import build_processor, build_tokenizer, token_ids


def scene(*names, context="kitchen", unsure=()):
    return SceneFacts(context, tuple(Fact(name, 0.2, 0.7, 0.1, 1, 1) for name in names), unsure=unsure)


PAIR = (scene("fork", "cup", unsure=("dog",)), scene("cup", "dog", "horse", context="farm"))


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def named_in(question):
    return next(
        name
        for name in sorted(vocabulary(), key=len, reverse=True)
        if re.search(rf"\b({name}|{plural(name)})\b", question)
    )


def right_answer(question):
    """What is true of the pair, from the words of the question alone."""
    assert not re.search(r"(first|second).*(first|second)", question) or "the first or the second" in question
    shown = [named_in(question) in {fact.name for fact in side.objects} for side in PAIR]
    if "the first or the second" in question:
        assert sum(shown) == 1, question
        return "First" if shown[0] else "Second"
    if re.search(r"\bboth\b", question):
        return "Yes" if all(shown) else "No"
    if re.search(r"\bany of the\b", question):
        return "Yes" if any(shown) else "No"
    assert ("first" in question) != ("second" in question), question
    return "Yes" if shown["second" in question] else "No"


def test_answers_about_pairs_are_true_and_balanced():
    rng = np.random.default_rng(0)
    turns = [turn for _ in range(400) for turn in pair_yes_no_turns(rng, PAIR, TextConfig())]
    for turn in turns:
        assert turn.answer == right_answer(turn.question), turn
    answers = [turn.answer for turn in turns]
    assert {"Yes", "No", "First", "Second"} == set(answers)
    assert 0.44 < answers.count("Yes") / (answers.count("Yes") + answers.count("No")) < 0.56
    assert not any(named_in(turn.question) == "dog" and "first" in turn.question for turn in turns)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_negatives_name_the_other_picture_as_often_as_asked(share):
    rng = np.random.default_rng(1)
    config = dataclasses.replace(TextConfig(), cross_share=share, hard_share=1.0)
    turns = [turn for _ in range(400) for turn in pair_yes_no_turns(rng, PAIR, config)]
    about_first = [t for t in turns if t.answer == "No" and "first" in t.question]
    cross = np.mean([named_in(turn.question) == "horse" for turn in about_first])
    chance = 1 / (len(vocabulary()) - 3)
    assert cross == pytest.approx(share + (1 - share) * chance, abs=0.05)


def test_every_wording_says_which_picture():
    for kind, forms in QUESTIONS.items():
        for form in forms:
            for which, (own, other) in enumerate((("first", "second"), ("second", "first"))):
                asked = about(form, which)
                assert asked.count(f"the {own} ") == 1, (kind, asked)
                assert other not in asked


def test_captions_are_of_the_picture_asked_about_or_of_both_in_order():
    rng = np.random.default_rng(2)
    told = [pair_turns(rng, PAIR, TextConfig(), "caption")[0] for _ in range(300)]
    both = [turn for turn in told if not re.search("first|second", turn.question)]
    assert 0.2 < len(both) / len(told) < 0.4
    for turn in both:
        first, second = re.fullmatch(r"The first image (.*)\. The second image (.*)\.", turn.answer).groups()
        assert "fork" in first
        assert "horse" in second
        assert "fork" not in second
    for turn in told:
        if turn not in both:
            own = "fork" if "first" in turn.question else "horse"
            assert own in turn.answer, turn


def test_places_are_of_the_picture_asked_about():
    rng = np.random.default_rng(3)
    turns = [turn for _ in range(40) for turn in pair_turns(rng, PAIR, TextConfig(), "places")]
    for turn in turns:
        side = PAIR["second" in turn.question]
        assert named_in(turn.question) in {fact.name for fact in side.objects}, turn


def test_texts_about_pairs_are_whole_words_of_the_tokenizer(tokenizer):
    rng = np.random.default_rng(4)
    for kind in ("yes_no", "places", "caption"):
        turns = [turn for _ in range(150) for turn in pair_turns(rng, PAIR, TextConfig(), kind)]
        for turn in turns:
            pieces = tokenizer.convert_ids_to_tokens(tokenizer(f"{turn.question} {turn.answer}").input_ids)
            spelled = [piece for piece in pieces if piece.isalpha() and len(piece) == 1 and piece != "a"]
            assert not spelled, turn
            assert tokenizer.unk_token not in pieces


def test_two_pictures_stand_as_the_chat_template_puts_them(tokenizer):
    processor = build_processor(ModelSizes())
    question = about("Is there a dog in the image?", 1)
    ask = {"role": "user", "content": [{"type": "image"}] * 2 + [{"type": "text", "text": question}]}
    reply = {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}
    ours = encode(tokenizer, [[Turn(question, "Yes", 1)]], patches=1, pictures=2)
    text = processor.apply_chat_template([ask, reply])
    assert text.startswith("USER: Image 1: <image>\nImage 2: <image>\nIn the second image, is there a dog?")
    assert tokenizer(text).input_ids == ours.input_ids[0].tolist()
    assert ours.image_starts == (6, 10)
    assert ours.first_word == 11


def test_pictures_are_numbered_through_a_conversation_and_one_alone_is_not():
    processor = build_processor(ModelSizes())

    def asked(pictures, text):
        return {"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}

    reply = {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}
    text = processor.apply_chat_template([asked(1, "A dog?"), reply, asked(2, "And here?")])
    numbers = re.findall(r"Image (\d): <image>", text)
    assert numbers == ["1", "2", "3"]
    assert "Image" not in processor.apply_chat_template([asked(1, "A dog?"), reply, asked(0, "A cat?")])
    assert "Image" not in processor.apply_chat_template([{"role": "user", "content": "A dog?"}])


def test_words_are_about_a_picture_from_where_it_is_named_to_the_end_of_the_answer(tokenizer):
    turns = [
        Turn("In the second image, is there a dog?", "Yes", 1),
        Turn("Do both images show a dog?", "No"),
        Turn("Does the first image show a dog?", "No", 0),
    ]
    batch = encode(tokenizer, [turns, turns[:1]], patches=2, pictures=2)
    told = [
        [tokenizer.decode(batch.input_ids[row, batch.which[row] == which]) for which in (0, 1)]
        for row in (0, 1)
    ]
    assert told[0] == [
        "first image show a dog? ASSISTANT : No </s>",
        "second image, is there a dog? ASSISTANT : Yes </s>",
    ]
    assert told[1] == ["", told[0][1]]
    assert torch.equal(batch.rows(slice(1, 2)).which, batch.which[1:])
    assert encode(tokenizer, [turns[1:2]], patches=2).which is None


def test_each_picture_enters_where_its_tokens_stand(tokenizer):
    sizes = ModelSizes(
        image=24, vision_width=16, vision_layers=1, vision_heads=2, width=32, layers=1, inner=32
    )
    model = build_model(sizes, token_ids(tokenizer), seed=0)
    rng = np.random.default_rng(5)
    _, batch = draw_pair_batch(rng, tokenizer, [*PAIR, *reversed(PAIR)], TextConfig(), patches=4, shares=3)
    assert len(batch.input_ids) == 6
    features = torch.randn(2, 8, 16)
    with torch.no_grad():
        embedded = embed_batch(model, batch, features)
        for row in range(6):
            for picture, start in enumerate(batch.image_starts):
                own = features[row // 3, 4 * picture : 4 * picture + 4]
                expected = model.model.multi_modal_projector(own)
                assert torch.allclose(embedded[row, start : start + 4], expected, atol=1e-6)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for start in batch.image_starts:
        assert (batch.input_ids[:, start : start + 4] == image).all()
    assert int((batch.input_ids == image).sum()) == 6 * 8


def test_pairs_are_of_two_places_of_the_pool_and_often_have_an_object_in_common():
    facts = [scene(vocabulary()[at % 20], vocabulary()[at * 7 % 64]) for at in range(400)]
    rows = pick_pairs(np.random.default_rng(6), facts, 300).reshape(-1, 2)
    names = [{fact.name for fact in item.objects} for item in facts]
    common = np.mean([bool(names[a] & names[b]) for a, b in rows])
    assert rows.shape == (300, 2)
    assert common > 0.3
    again = pick_pairs(np.random.default_rng(6), facts, 300).reshape(-1, 2)
    assert np.array_equal(rows, again)
