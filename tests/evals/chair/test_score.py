import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.data import load_captions, load_ground_truth
from lvlm_attn.evals.chair.score import Caption, drop_unfinished_sentence, score_chair
from lvlm_attn.evals.chair.vocab import MODES, nodes_of, read_caption, surface_table, tokenise
from lvlm_attn.evals.chair.words import WORDS


def nodes(text, mode="strict"):
    return [mention.node for mention in read_caption(text, mode).mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man and two women watch the children.", ["person", "person", "person"]),
        ("People on buses.", ["person", "bus"]),
        ("A dog, a dog and another dog", ["dog", "dog", "dog"]),
        ("three knives, mice, geese and oxen; calves", ["knife", "mouse", "bird", "cow", "cow"]),
        ("hot dogs on a dining table", ["hot dog", "dining table"]),
        ("two wine glasses beside a glass", ["wine glass"]),
        ("a stove top oven", ["oven"]),
        ("a motor bike and a motorcycle", ["motorcycle", "motorcycle"]),
        ("the player runs to home plate", ["person"]),
        ("tracks: train tracks and a train", ["train"]),
        ("a passenger jet next to a passenger train", ["airplane", "train"]),
        ("a passenger waits", ["person"]),
        ("a baby elephant with an adult elephant", ["elephant", "elephant"]),
        ("a baby with a cat", ["person", "cat"]),
        ("baby cubs play", []),
        ("a baby animal and adult animals", []),
        ("the toilet seat is up, and the seat is white", ["toilet"]),
        ("a seat on the bus", ["chair", "bus"]),
        ("a toilet with a seat", ["toilet"]),
        ("toilets with seats, a seat", ["toilet"]),
        ("two toilet seats beside seats", ["toilet"]),
        ("a urinal, and a seat", ["toilet", "chair"]),
        ("a toilet and a stool", ["toilet", "chair"]),
        ("a black bow tie", ["tie"]),
        ("the man's tie", ["person", "tie"]),
        ("two teddy bears and a bear", ["teddy bear", "bear"]),
        ("a teddy-bear", ["teddy bear"]),
        ("a dog-friendly cafe", []),
        ("a baby-elephant and a passenger-train", ["elephant", "train"]),
        ("A TV; iPhones, and a Cell Phone.", ["tv", "cell phone", "cell phone"]),
        ("skis and scissors, ski, ties", ["skis", "scissors", "skis", "tie"]),
        ("a potted plant, a hair dryer and stop signs", ["potted plant", "hair drier", "stop sign"]),
        ("a plate, a tree and a building", []),
        ("", []),
    ],
)
def test_rules_of_the_strict_mode(text, expected):
    assert nodes(text) == expected


@pytest.mark.parametrize(
    ("word", "strict", "pattern", "wordnet"),
    [
        ("bus", ["bus"], [], ["bus"]),
        ("buses", ["bus"], ["bus"], ["bus"]),
        ("ties", ["tie"], [], ["tie"]),
        ("men", ["person"], ["person"], []),
        ("women", ["person"], ["person"], ["person"]),
        ("vases", ["vase"], ["vase"], []),
        ("vase", ["vase"], ["vase"], ["vase"]),
        ("iphone", ["cell phone"], [], []),
        ("televison", [], ["tv"], ["tv"]),
        ("sheeps", [], ["sheep"], ["sheep"]),
        ("hot-dog", ["hot dog"], [], []),
        ("cheesecake", ["cake"], [], []),
        ("motor bike", ["motorcycle"], [], []),
        ("dining table", ["dining table"], ["dining table"], ["dining table"]),
        ("tennis racket", ["tennis racket"], ["tennis racket"], ["tennis racket"]),
        ("stove top oven", ["oven"], ["oven", "oven"], ["oven", "oven"]),
        ("wine glasses", ["wine glass"], ["wine glass"], ["wine glass"]),
    ],
)
def test_modes_differ_where_the_published_scripts_do(word, strict, pattern, wordnet):
    assert (nodes(word), nodes(word, "pattern"), nodes(word, "wordnet")) == (strict, pattern, wordnet)


def test_every_category_is_found_by_its_own_name():
    assert len(WORDS) == 80
    for node in WORDS:
        assert nodes(f"there is {node}.") == [node]
        assert nodes_of([node]) == ({node}, [])


def test_positions_count_joined_phrases_once():
    reading = read_caption("A hot dog. Two cats!")
    assert [(m.surface, m.token, m.sentence) for m in reading.mentions] == [("hot dog", 1, 0), ("cats", 4, 1)]
    assert reading.tokens == 6


def test_a_phrase_of_two_words_is_one_mention_and_one_token():
    for phrase, node in (("toilet seat", "toilet"), ("passenger jet", "airplane"), ("baby bear", "bear")):
        reading = read_caption(f"A {phrase}.")
        assert [(m.node, m.surface) for m in reading.mentions] == [(node, phrase)]
        assert reading.tokens == 3
    assert read_caption("home plate").tokens == read_caption("train track").tokens == 1
    assert read_caption("motor bike", "pattern").tokens == 1


def test_strict_is_the_mode_where_none_is_named():
    assert surface_table() == surface_table("strict") != surface_table("pattern")
    assert read_caption("hotdogs") == read_caption("hotdogs", "strict") != read_caption("hotdogs", "pattern")
    assert nodes_of(["hotdog"]) == nodes_of(["hotdog"], "strict") != nodes_of(["hotdog"], "pattern")


@pytest.mark.parametrize("apostrophe", ["'", "’"])
def test_a_genitive_is_two_tokens(apostrophe):
    assert tokenise(f"The dog{apostrophe}s well-known T.V.") == [
        "the", "dog", "'s", "well-known", "t", ".", "v", ".",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("A dog... A cat.", [0, 1]),
        ("A dog?! A cat. A bird", [0, 1, 2]),
        ("A dog? A cat?? A bird!? A cow", [0, 1, 2, 3]),
        ("... a dog", [1]),
        ("A dog, a cat; a bird: a cow", [0, 0, 0, 0]),
        ("A dog!!! A cat.. A bird.", [0, 1, 2]),
        ("A dog . . A cat", [0, 1]),
    ],
)
def test_stops_in_a_row_end_one_sentence(text, sentences):
    assert [mention.sentence for mention in read_caption(text).mentions] == sentences


@given(st.text())
def test_any_text_can_be_read(text):
    for mode in MODES:
        assert read_caption(text, mode).tokens >= 0


def test_unknown_mode_is_refused():
    with pytest.raises(LvlmAttnError, match="Did you mean 'wordnet'"):
        surface_table("word-net")


@pytest.mark.parametrize(("mode", "expected"), [("pattern", 3739), ("wordnet", 3804)])
def test_mentions_in_published_captions(shared_data, mode, expected):
    """Counted on OPERA's 500 greedy captions with the published table and software; wordnet has 34 verbs among them."""
    captions, failed = load_captions([shared_data / "chair/opera_logs/llava-1.5/greedy.jsonl"])
    assert (len(captions), failed) == (500, 0)
    assert sum(len(read_caption(caption.text, mode).mentions) for caption in captions) == expected


def test_scores_by_hand():
    captions = [
        Caption("1", "A dog and a cat. Two dogs.", truncated=False),  # dog, cat!, dog
        Caption("2", "A person rides a horse.", truncated=True),  # person, horse
        Caption("3", "Nothing at all.", truncated=False),
    ]
    truth = {"1": {"dog", "bed"}, "2": {"person", "horse", "car"}, "3": {"kite"}}
    score = score_chair(captions, truth)
    assert score["chair_s"] == pytest.approx(1 / 3)
    assert score["chair_i"] == pytest.approx(1 / 5)
    assert score["recall"] == pytest.approx(3 / 6)
    assert score["precision"] == pytest.approx(3 / 4)
    assert score["f1"] == pytest.approx(2 * 0.5 * 0.75 / 1.25)
    assert score["len"] == pytest.approx((9 + 6 + 4) / 3)
    assert score["mentions_per_caption"] == pytest.approx(5 / 3)
    assert score["truncated"] == pytest.approx(1 / 3)
    assert (score["first_hallucination_token"], score["first_hallucination_sentence"]) == (4, 0)
    assert score["top_hallucinated"] == {"cat": 1}
    assert (score["n"], score["mentions"], score["hallucinated_mentions"], score["failed"]) == (3, 5, 1, 0)


def test_nothing_hallucinated_and_truncation_unknown():
    score = score_chair([Caption("1", "A dog")], {"1": {"dog"}})
    assert (score["chair_s"], score["chair_i"], score["recall"], score["precision"]) == (0, 0, 1, 1)
    assert (score["truncated"], score["first_hallucination_token"]) == (None, None)


def test_unfinished_sentence_is_dropped_on_request():
    text = "A dog sleeps on 3.5 beds. There is a c"
    assert drop_unfinished_sentence(text) == "A dog sleeps on 3.5 beds."
    assert drop_unfinished_sentence("no stop here") == "no stop here"
    captions = [Caption("1", "A dog. A cat on")]
    assert score_chair(captions, {"1": {"dog"}})["chair_s"] == 1
    assert score_chair(captions, {"1": {"dog"}}, drop_incomplete_sentence=True)["chair_s"] == 0


def test_captions_without_ground_truth_are_refused():
    with pytest.raises(LvlmAttnError, match=r"1 captions have no ground truth .*image 9"):
        score_chair([Caption("9", "A dog")], {"1": {"dog"}})
    with pytest.raises(LvlmAttnError, match="no captions to score"):
        score_chair([], {})


def test_ground_truth_file(tmp_path):
    path = tmp_path / "gt.jsonl"
    rows = [
        {"image_id": 1, "objects": ["hydrant", "fire hydrant", "sofa", "unicorn"], "file_name": "one.jpg"},
        {"image_id": 2, "captions": ["Two dogs on a bed.", "A puppy"]},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    truth = load_ground_truth(path)
    assert truth.objects == {"1": {"fire hydrant", "couch"}, "2": {"dog", "bed"}}
    assert truth.unknown == ("unicorn",)
    assert truth.file_names == {"1": "one.jpg", "2": "2"}
    path.write_text('{"image_id": 1, "objects": ["unicorn"]}')
    with pytest.raises(LvlmAttnError, match="names no COCO object"):
        load_ground_truth(path)
    path.write_text('{"image_id": 1}')
    with pytest.raises(LvlmAttnError, match="line 1: expected"):
        load_ground_truth(path)
    path.write_text('{"image_id": 1, "objects": "dog"}')
    with pytest.raises(LvlmAttnError, match="must be lists"):
        load_ground_truth(path)
