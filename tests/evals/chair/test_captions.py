"""Caption files in every form, and the spellings a caption may use."""

import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.data import load_caption_file, load_captions
from lvlm_attn.evals.chair.score import Caption, score_chair
from lvlm_attn.evals.chair.spellings import other_spellings
from lvlm_attn.evals.chair.vocab import nodes_of, read_caption
from lvlm_attn.evals.chair.words import WORDS, plurals


def nodes(text, mode="strict"):
    return [mention.node for mention in read_caption(text, mode).mentions]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "hotdogs, an aeroplane, a surf board, a tennis racquet",
            ["hot dog", "airplane", "surfboard", "tennis racket"],
        ),
        ("Hot-dogs and a hot-dog bun", ["hot dog", "hot dog"]),
        ("skate boards, snow-boards and a snow boarder", ["skateboard", "snowboard", "person"]),
        ("a back pack, a hand bag and a tooth brush", ["backpack", "handbag", "toothbrush"]),
        ("a love seat, a pit bull and a sheep dog", ["couch", "dog", "dog"]),
        ("a co-worker and a traveller", ["person", "person"]),
        ("the T.V. is on. A lap-top", ["tv", "laptop"]),
        ("firehydrants, a stopsign, wineglasses", ["fire hydrant", "stop sign", "wine glass"]),
        (
            "a hair-dryer, a hairdrier and two racquets",
            ["hair drier", "hair drier", "tennis racket"],
        ),
        ("an air bus and a jet liner", ["airplane", "airplane"]),
        ("a base ball bat and a base-ball-glove", ["baseball bat", "baseball glove"]),
        ("a long board of directors", ["surfboard"]),
        ("the surf, a board, hot, dog", ["dog"]),
    ],
)
def test_other_spellings_count_in_strict(text, expected):
    assert nodes(text) == expected


def test_published_modes_keep_the_published_spellings():
    for mode in ("pattern", "wordnet"):
        assert nodes("hotdogs, an aeroplane, a surf board, a tennis racquet", mode) == []


def test_every_compound_is_read_apart_together_and_with_a_hyphen():
    for node, synonyms in WORDS.items():
        for word in (node, *filter(None, synonyms.split(", "))):
            if " " in word:
                assert [nodes(word.replace(" ", glue)) for glue in (" ", "", "-")] == [[node]] * 3, word


def test_spellings_name_known_categories_and_take_nothing_from_the_table():
    for spelling, node in other_spellings():
        assert node in WORDS
        assert nodes(f"one {spelling} here") == [node], spelling


@pytest.mark.parametrize(
    "name", ["hotdog", "Aeroplane", "surf_board", "tennis-racquet", "diningtable", "tvmonitor", "TV"]
)
def test_names_in_a_ground_truth_are_read_alike(name):
    found, unknown = nodes_of([name])
    assert len(found) == 1
    assert unknown == []


def test_plurals_by_hand():
    words = (
        "fox",
        "waltz",
        "bench",
        "toothbrush",
        "wine glass",
        "puppy",
        "ferry",
        "monkey",
        "stop sign",
        "yak",
    )
    assert [plurals(word) for word in words] == [
        ("foxes",), ("waltzes",), ("benches",), ("toothbrushes",), ("wine glasses",), ("puppies",), ("ferries",),
        ("monkeys",), ("stop signs",), ("yaks",),
    ]  # fmt: skip
    assert plurals("fire man") == ("fire men",)
    assert plurals("mini bus") == ("mini buses", "mini busses")
    assert plurals("aircraft") == ()


def test_what_is_spelt_with_a_full_stop_is_not_put_together():
    spellings = dict(other_spellings())
    assert spellings["t . v"] == spellings["tvmonitor"] == "tv"
    assert "t.v" not in spellings


def test_names_are_read_without_outer_blanks_and_by_their_mode():
    assert nodes_of([" dining table "], "pattern") == ({"dining table"}, [])
    assert nodes_of(["hot-dog", "Hot_Dog"], "pattern") == ({"hot dog"}, ["hot-dog"])


@pytest.mark.parametrize(
    ("word", "node"),
    [
        ("skiing", "skis"), ("seated", "chair"), ("seating", "chair"), ("skateboarding", "skateboard"), ("tied", "tie"),
        ("snowboarding", "snowboard"), ("tying", "tie"), ("boating", "boat"), ("monitoring", "tv"),
        ("groomed", "person"), ("born", "bear"),
    ],
)  # fmt: skip
def test_wordnet_takes_verbs_for_objects_and_the_others_do_not(word, node):
    assert nodes(f"They were {word} there.", "wordnet") == [node]
    assert nodes(word) == nodes(word, "pattern") == []


def test_strict_skips_reasoning_in_captions():
    captions = [Caption("1", "<think>A cat? No, a zebra.</think>A dog."), Caption("2", "<think>a cat")]
    score = score_chair(captions, {"1": {"dog"}, "2": {"dog"}})
    assert (score["chair_s"], score["mentions"], score["reasoning"]) == (0, 1, 2)
    assert score_chair(captions, {"1": {"dog"}, "2": {"dog"}}, "wordnet")["chair_s"] == 1


@pytest.mark.parametrize(
    "value",
    [
        [{"image_id": 1, "caption": "a dog"}],
        [{"image_id": "COCO_val2014_000000000001.jpg", "response": "a dog"}],
        [{"image": "/data/000000000001.jpg", "text": "Describe it?", "answer": "a dog"}],
        [{"image_id": 1.0, "prompt": "Describe it.", "text": "a dog"}],
        [{"question_id": 1, "prompt": "Describe it.", "text": "a dog"}],
        {"overall": {"CIDEr": 1.0}, "imgToEval": {"0": {"image_id": 1, "caption": "a dog"}}},
        {"imgToEval": {"1": {"caption": "a dog"}}},
        {
            "overall_metrics": {},
            "sentences": [{"image_id": 1, "caption": "a dog", "mscoco_hallucinated_words": []}],
        },
        [
            {
                "doc_id": 0,
                "doc": {"question_id": 1},
                "target": "",
                "resps": [["a dog"]],
                "filtered_resps": ["a dog"],
            }
        ],
        [{"sample_id": "1", "image": "1.jpg", "raw_text": "a dog", "finish_reason": "eos"}],
    ],
)
def test_every_form_gives_the_same_caption(tmp_path, value):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(value))
    (caption,) = load_caption_file(path).captions
    assert (caption.image, caption.text) == ("1", "a dog")


def test_what_was_chosen_and_borrowed_is_said(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"question_id": 1, "text": "a dog"}')
    assert load_caption_file(path).notes == (
        "answers of c.json are read from 'text'.",
        "c.json has no image_id; its question_id is taken for the picture's id.",
    )


def test_runs_shards_failures_and_mixed_files(tmp_path):
    rows = [
        {"image_id": "000000000001.jpg", "caption": "A dog"},
        {"sample_id": "a", "image": "b.png", "raw_text": "A cat", "finish_reason": "length"},
        {"sample_id": "c", "image": "c.png", "raw_text": None, "error": "truncated"},
    ]
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    first.write_text("\n".join(map(json.dumps, rows)))
    second.write_text('{"image_id": 7, "caption": "A kite"}')
    captions, failed = load_captions([first, second])
    assert captions == [Caption("1", "A dog"), Caption("b", "A cat", True), Caption("7", "A kite")]
    assert failed == 1
    second.write_text('{"image_id": 1, "caption": "A kite"}')
    with pytest.raises(LvlmAttnError, match="a second caption of image 1"):
        load_captions([first, second])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"image_id": 1, "caption": "A dog"}] * 2, "line 2: a second caption of image 1"),
        ([{"image_id": 1, "said": 5}], "no caption in any record .it has image_id, said"),
        ([{"caption": "A dog"}], "line 1: expected image_id and caption as text, found caption"),
        ([{"image_id": 1, "caption": "A dog"}, {"image_id": 2, "caption": 5}], "line 2: expected"),
        ([{"image_id": 1, "prediction": "A dog", "output": "A cat"}], "'prediction' and 'output'"),
    ],
)
def test_bad_caption_files(tmp_path, rows, message):
    path = tmp_path / "c.json"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(LvlmAttnError, match=message):
        load_caption_file(path)


def test_a_field_may_be_named(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"image_id": 1, "prediction": "A dog", "output": "A cat"}')
    assert load_caption_file(path, "output").captions == (Caption("1", "A cat"),)


def test_published_captions_score_without_flags(shared_data):
    for path in sorted((shared_data / "chair/opera_logs").rglob("*.jsonl")):
        file = load_caption_file(path)
        score = score_chair(file.captions, {caption.image: {"person"} for caption in file.captions})
        assert (score["n"], score["failed"], file.choice.field) == (500, 0, "caption")
        assert score["mentions"] > 3000
