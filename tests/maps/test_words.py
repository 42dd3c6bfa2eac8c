"""Which tokens a word is made of."""

import pytest

from lvlm_attn.maps.words import count_word, find_word, joined_pieces, recorded_text, token_texts, words_in
from tests.maps.made import toy_model

ANSWER = [" A", " hot", "dog", ",", " Dogs", " and", " a", " dog", "."]


@pytest.mark.parametrize(
    ("word", "mention", "found"),
    [
        ("dog", 1, [7]),
        ("dog", 2, []),
        ("dog", 0, []),
        ("hotdog", 1, [1, 2]),
        ("HotDog", 1, [1, 2]),
        ("a", 2, [6]),
        ("a dog", 1, [6, 7]),
        ("a  dog", 1, [6, 7]),
        ("", 1, []),
        (" ", 1, []),
        ("og", 1, []),
        ("dogs and a", 1, [4, 5, 6]),
        (".", 1, [8]),
    ],
)
def test_find_word(word, mention, found):
    assert find_word(ANSWER, word, mention) == found


def test_words_without_blanks_between_them():
    assert find_word(["一只", "狗", "在", "跑"], "狗") == [1]


def test_bytes_of_a_characters_tokens_belong_to_its_word():
    assert find_word([" a ", "", "", "é", "t", "é"], "été") == [1, 2, 3, 4, 5]


def test_count_and_words():
    assert count_word(ANSWER, "dog") == 1
    assert count_word(ANSWER, "") == 0
    pieces = [" It's", " a", " dog", ";", " a", " T-shirt", " </s>", "<|im_end|>"]
    assert words_in(pieces) == ["It's", "a", "dog", "T-shirt"]


def test_what_was_recorded_is_quoted_as_it_stands():
    pieces = joined_pieces([" A", " traffic", " light", ".", " Two", "</s>"], [4, 5, 6, 7, 9, 10])
    assert recorded_text(pieces) == "“A traffic light. ... Two”"
    assert recorded_text(["</s>"]) == "nothing at all"
    assert len(recorded_text([" a"] * 400)) == 202


def test_no_word_runs_over_a_gap():
    assert find_word(joined_pieces(["hot", "dog"], [4, 5]), "hotdog") == [0, 1]
    assert find_word(joined_pieces(["hot", "dog"], [4, 9]), "hotdog") == []


def test_texts_of_tokens_join_to_the_decoded_text():
    tokenizer = toy_model()[1].tokenizer
    text = "The image contains two hot dogs, a cat and a bus."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids)


class Bytes:
    """Every token is one byte of UTF-8."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", "replace")


def test_characters_of_several_tokens():
    ids = list("aé€b".encode())
    assert token_texts(ids, Bytes()) == ["a", "", "é", "", "", "€", "b"]
    assert token_texts(ids[:2], Bytes())[0] == "a"
