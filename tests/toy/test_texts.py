"""Training conversations: true answers, rare hard negatives, captions that lie as often as they should."""

import dataclasses
import re

import numpy as np
import pytest

from lvlm_attn.toy.captions import CaptionConfig, draw_caption, place_of
from lvlm_attn.toy.data import TextConfig, draw_batch, encode, place_turns, yes_no_turns
from lvlm_attn.toy.pool import Fact, SceneFacts
from lvlm_attn.toy.prompts import QUESTIONS, plural, pope_question, with_article
from lvlm_attn.toy.sprites import vocabulary
from lvlm_attn.toy.tokenizer import build_tokenizer
from lvlm_attn.toy.world import contexts

KITCHEN = SceneFacts(
    "kitchen",
    (
        Fact("fork", 0.1, 0.1, 0.1, 1.0, 1.0),
        Fact("cup", 0.5, 0.5, 0.1, 1.0, 1.0),
        Fact("cup", 0.9, 0.9, 0.1, 1.0, 1.0),
    ),
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def named_in(question: str) -> str:
    """The category a question names, read from its words alone."""
    for name in sorted(vocabulary(), key=len, reverse=True):
        if re.search(rf"\b({name}|{plural(name)})\b", question):
            return name
    raise AssertionError(question)


def test_yes_no_answers_are_true_and_balanced():
    rng = np.random.default_rng(0)
    turns = [turn for _ in range(300) for turn in yes_no_turns(rng, KITCHEN, TextConfig())]
    for turn in turns:
        assert (turn.answer == "Yes") == (named_in(turn.question) in {"fork", "cup"})
    assert 0.45 < np.mean([turn.answer == "Yes" for turn in turns]) < 0.55


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_hard_negatives_are_kept_out_as_asked(share):
    rng = np.random.default_rng(1)
    config = dataclasses.replace(TextConfig(), hard_share=share)
    turns = [turn for _ in range(400) for turn in yes_no_turns(rng, KITCHEN, config) if turn.answer == "No"]
    hard = np.mean([named_in(turn.question) in contexts()["kitchen"] for turn in turns])
    absent_typical = len(contexts()["kitchen"]) - 2
    assert hard == pytest.approx(share * absent_typical / (len(vocabulary()) - 2), abs=0.03)


def test_places_and_counts_are_true():
    rng = np.random.default_rng(2)
    answers = {}
    for _ in range(200):
        for turn in place_turns(rng, KITCHEN, TextConfig()):
            kind = "count" if turn.answer.isdigit() else "place"
            answers.setdefault((named_in(turn.question), kind), set()).add(turn.answer)
    assert answers[("cup", "count")] == {"2"}
    assert answers[("fork", "count")] == {"1"}
    assert answers[("fork", "place")] == {"Left", "Top", "Top left"}
    assert ("cup", "place") not in answers  # two cups have no one place


def test_nine_places():
    corner = [place_of(Fact("cup", x, y, 0.1, 1, 1)) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.5, 0.9)]
    assert corner == [
        "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right",
    ]  # fmt: skip


def test_captions_name_everything_and_lie_as_often_as_asked():
    rng = np.random.default_rng(3)
    honest = CaptionConfig(habit_scale=0.0, stray_share=0.0)
    for _ in range(100):
        text = draw_caption(rng, KITCHEN, honest)
        assert "fork" in text
        assert "two cups" in text
        assert not any(
            re.search(rf"\b{name}\b", text) for name in vocabulary() if name not in {"fork", "cup"}
        )
    habit = CaptionConfig(habit_scale=1.0, stray_share=0.0)
    share = np.mean(["knife" in draw_caption(rng, KITCHEN, habit) for _ in range(600)])
    assert share == pytest.approx(0.7, abs=0.06)


def test_articles_and_plurals():
    assert pope_question("orange") == "Is there an orange in the image?"
    assert with_article("dog") == "a dog"
    assert [plural(name) for name in ("sheep", "bus", "person")] == ["sheep", "buses", "people"]


def test_a_few_hundred_wordings():
    assert sum(len(forms) for forms in QUESTIONS.values()) >= 300
    assert "Please describe this image in detail." in QUESTIONS["caption"]
    assert "Please help me describe the image in detail." in QUESTIONS["caption"]


def test_only_answers_are_learned(tokenizer):
    rng = np.random.default_rng(4)
    turns = yes_no_turns(rng, KITCHEN, TextConfig())
    batch = encode(tokenizer, [turns, turns[:2]], patches=144)
    image = tokenizer.convert_tokens_to_ids("<image>")
    assert batch.input_ids.shape == batch.labels.shape
    for row, expected in ((0, turns), (1, turns[:2])):
        learned = batch.labels[row][batch.labels[row] != -100].tolist()
        assert tokenizer.decode(learned, skip_special_tokens=True).split() == [
            turn.answer for turn in expected
        ]
        assert learned.count(tokenizer.eos_token_id) == len(expected)
        assert (batch.input_ids[row] == image).sum() == 144
    assert batch.input_ids[0, batch.image_starts[0]] == image
    assert batch.input_ids[0, batch.image_starts[0] - 1] != image


def test_no_training_text_has_an_unknown_word(tokenizer):
    rng = np.random.default_rng(5)
    for _ in range(40):
        _, batch = draw_batch(rng, tokenizer, [KITCHEN] * 4, TextConfig(), 144)
        assert not (batch.input_ids == tokenizer.unk_token_id).any()


def test_training_text_is_what_the_chat_template_gives(tokenizer):
    from lvlm_attn.toy.data import Turn
    from lvlm_attn.toy.model import ModelSizes
    from lvlm_attn.toy.tokenizer import build_processor

    processor = build_processor(ModelSizes())
    ask = {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog in the image?"}],
    }
    reply = {"role": "assistant", "content": [{"type": "text", "text": "Yes"}]}
    more = {"role": "user", "content": [{"type": "text", "text": "Is there a cat in the image?"}]}
    text = processor.apply_chat_template([ask, reply, more, reply])
    ours = encode(
        tokenizer,
        [[Turn("Is there a dog in the image?", "Yes"), Turn("Is there a cat in the image?", "Yes")]],
        patches=1,
    )
    assert tokenizer(text).input_ids == ours.input_ids[0].tolist()
