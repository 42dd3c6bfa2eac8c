import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.pope.answers import Answered
from lvlm_attn.evals.pope.data import dataset_of, load_questions, normalised, split_of
from lvlm_attn.evals.pope.score import score_pope

ROWS = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there an oven in the imange?", "label": "no"},
]


def write(path, text):
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("\n".join(map(json.dumps, ROWS)), "json lines"),
        ("\r\n".join(map(json.dumps, ROWS)) + "\r\n", "json lines"),
        ("\ufeff" + "\n\n".join(map(json.dumps, ROWS)) + "\n", "json lines"),
        (json.dumps(ROWS), "array"),
        (json.dumps(ROWS, indent=4), "array"),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS), "concatenated"),
    ],
)
def test_every_layout_gives_the_same_questions(tmp_path, text, layout):
    data = load_questions(write(tmp_path / "coco_pope_adversarial.json", text))
    assert [(q.question_id, q.image, q.label, q.object) for q in data.questions] == [
        (1, "a.jpg", "yes", "dog"),
        (2, "a.jpg", "no", "oven"),
    ]
    assert [q.sample_id for q in data.questions] == ["adversarial:1", "adversarial:2"]
    (info,) = data.files
    assert (info.layout, info.rows, info.typos, info.yes, info.images) == (layout, 2, 1, 1, 1)
    assert len(info.sha256) == 64


def test_the_typo_is_kept_unless_asked(tmp_path):
    path = write(tmp_path / "q.json", json.dumps(ROWS))
    assert load_questions(path).questions[1].text.endswith("imange?")
    mended = load_questions(path, fix_typo=True)
    assert mended.questions[1].text == "Is there an oven in the image?"
    assert mended.files[0].typos == 1


def test_chat_records_become_single_questions(tmp_path):
    record = {
        "text": ["Is there a cat in the image?", "Is there a car in the image?"],
        "label": ["yes", "no"],
    }
    lines = [{**record, "chat_id": chat, "image": f"{chat}.jpg"} for chat in (0, 1)]
    data = load_questions(write(tmp_path / "x_popular.json", "\n".join(map(json.dumps, lines))))
    assert [q.question_id for q in data.questions] == [1, 2, 3, 4]
    assert data.files[0].layout == "json lines, chat"


def test_rows_without_labels_take_them_from_the_labelled_files(tmp_path):
    suffix = "\nAnswer the question using a single word or phrase."
    bare = [
        {
            **row,
            "question_id": 7 + i,
            "category": "random",
            "text": row["text"].replace("imange", "image") + suffix,
        }
        for i, row in enumerate(ROWS)
    ]
    for row in bare:
        del row["label"]
    asked = write(tmp_path / "llava_pope_test.jsonl", "\n".join(map(json.dumps, bare)))
    labelled = write(tmp_path / "coco_pope_random.json", json.dumps(ROWS))
    data = load_questions([asked, labelled])
    assert [(q.sample_id, q.label) for q in data.questions] == [("random:7", "yes"), ("random:8", "no")]
    assert [q.label for q in load_questions(asked).questions] == [None, None]


def test_files_of_one_split_keep_apart(tmp_path):
    paths = [write(tmp_path / f"{name}_pope_random.json", json.dumps(ROWS)) for name in ("coco", "gqa")]
    assert load_questions(paths).categories == ("coco_pope_random", "gqa_pope_random")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1}\n', "line 1: no 'image'"),
        (json.dumps(ROWS[0]) + '\n{"question_id": 2, "image"', "line 2: not valid JSON"),
        (json.dumps(ROWS)[:-1], "ends inside its array"),
        ("", "holds no JSON objects"),
        ("[1, 2]", "line 1: expected a JSON object"),
        (json.dumps(ROWS[0]) + "\n" + json.dumps({**ROWS[1], "label": "maybe"}), "line 2: label is 'maybe'"),
        (json.dumps([ROWS[0], ROWS[0]]), "occur more than once"),
        (json.dumps([{**ROWS[0], "question_id": None}]), "question_id is None"),
        (
            json.dumps([{**ROWS[0], "text": ["a?"], "label": ["yes", "no"]}]),
            "1 questions need a list of 1 labels",
        ),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path, text, message):
    path = write(tmp_path / "bad.json", text)
    with pytest.raises(LvlmAttnError, match=message) as error:
        load_questions(path)
    assert "bad.json" in str(error.value) or "question ids" in str(error.value)


def test_missing_folder_and_binary_files(tmp_path):
    with pytest.raises(LvlmAttnError, match="does not exist"):
        load_questions(tmp_path / "none.json")
    with pytest.raises(LvlmAttnError, match="is a folder"):
        load_questions(tmp_path)
    (tmp_path / "z.json").write_bytes(b"\xe9t\xe9")
    with pytest.raises(LvlmAttnError, match="not UTF-8"):
        load_questions(tmp_path / "z.json")
    (tmp_path / "z.json").write_bytes(b"\x1f\x8b\xff\xfe")
    with pytest.raises(LvlmAttnError, match="damaged gzip"):
        load_questions(tmp_path / "z.json")
    with pytest.raises(LvlmAttnError, match="no question file"):
        load_questions([])


def test_rows_of_the_hub(tmp_path):
    rows = [
        {"id": str(i), "question_id": str(i % 2 + 1), "question": "Is there a dog in the image?", "answer": "yes",
         "image_source": "COCO_val2014_000000000001", "category": ("Random", "popular")[i // 2]}
        for i in range(4)
    ]  # fmt: skip
    data = load_questions(write(tmp_path / "hub.jsonl", "\n".join(map(json.dumps, rows))))
    assert [q.sample_id for q in data.questions] == ["random:1", "random:2", "popular:1", "popular:2"]
    assert {(q.image, q.label, q.object) for q in data.questions} == {
        ("COCO_val2014_000000000001", "yes", "dog")
    }


def test_a_row_of_vlmevalkit_counts_for_each_of_its_categories(tmp_path):
    text = 'index\timage\tquestion\tanswer\tcategory\n7\t/9j\tIs there a dog in the image?\tYes\t"adversarial,random"\n'
    data = load_questions(write(tmp_path / "POPE.tsv", text))
    assert [(q.sample_id, q.question_id, q.label) for q in data.questions] == [
        ("adversarial:7", 7, "yes"),
        ("random:7", 7, "yes"),
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["Yes.", "NO"], ["yes", "no"]),
        ([True, False], ["yes", "no"]),
        ([1, 0], ["yes", "no"]),
        ([1.0, None], ["yes", None]),
    ],
)
def test_labels_in_every_writing(tmp_path, labels, expected):
    rows = [{**row, "label": label} for row, label in zip(ROWS, labels)]
    assert [
        q.label for q in load_questions(write(tmp_path / "q.json", json.dumps(rows))).questions
    ] == expected


def test_splits_of_a_dataset_dict_are_categories(tmp_path):
    rows = [{**row, "split": "popular"} for row in ROWS]
    assert load_questions(write(tmp_path / "q.json", json.dumps(rows))).categories == ("popular",)


def test_files_with_all_splits_keep_apart(tmp_path):
    rows = [{**row, "category": split} for split in ("random", "popular") for row in ROWS]
    paths = [write(tmp_path / f"{name}.json", json.dumps(rows)) for name in ("coco", "gqa")]
    assert load_questions(paths).categories == ("coco-random", "coco-popular", "gqa-random", "gqa-popular")


@pytest.mark.parametrize(
    ("name", "split", "dataset"),
    [
        ("coco_pope_random", "random", "coco"),
        ("llava-7b-A-OKVQA-adv", "adversarial", "aokvqa"),
        ("gqa_pope_seem_popular", "popular", "gqa"),
        ("random_popular", None, None),
        ("randomised_coconut", None, "coco"),
    ],
)
def test_what_a_name_tells(name, split, dataset):
    assert (split_of(name), dataset_of(name)) == (split, dataset)


def test_statements_are_pointed_out(tmp_path):
    rows = [{**ROWS[0], "text": "There is a dog."}]
    (warning,) = load_questions(write(tmp_path / "s.json", json.dumps(rows))).files[0].warnings
    assert "not questions" in warning


def test_normalised_ignores_typo_article_and_suffix():
    wordings = ["Is there an oven in the imange?", "is there a oven in the image? Answer with one word."]
    assert len({normalised(text) for text in wordings}) == 1


@pytest.mark.parametrize(
    ("name", "rows", "typos", "layout"),
    [
        ("DAMO_VCD/coco/coco_pope_random.json", 3000, 0, "json lines"),
        ("DAMO_VCD/coco/coco_pope_adversarial.json", 3000, 57, "json lines"),
        ("RUCAIBox_POPE/coco/coco_pope_popular.json", 3000, 0, "json lines"),
        ("RUCAIBox_POPE/gqa/gqa_pope_seem_random.json", 3000, 0, "array"),
        ("RUCAIBox_POPE/aokvqa/aokvqa_pope_seem_popular.json", 3000, 0, "array"),
        ("DAMO_VCD/gqa/gqa_pope_adversarial.json", 3000, 0, "json lines"),
        ("DAMO_VCD/aokvqa/aokvqa_pope_random.json", 3000, 0, "json lines"),
        ("OPERA_pope_coco/coco_pope_random.json", 2910, 144, "json lines"),
        ("OPERA_pope_coco/coco_pope_popular.json", 3000, 44, "json lines"),
        ("PAI_chat/coco_pope_chat_adversarial.json", 3000, 58, "json lines, chat"),
    ],
)
def test_published_files(shared_data, name, rows, typos, layout):
    (info,) = load_questions(shared_data / "pope" / name).files
    assert (info.rows, info.typos, info.layout, info.yes, info.images) == (rows, typos, layout, 1500, 500)


def test_published_variants_ask_the_same(shared_data):
    ours = load_questions(shared_data / "pope/DAMO_VCD/coco/coco_pope_adversarial.json").questions
    theirs = load_questions(shared_data / "pope/RUCAIBox_POPE/coco/coco_pope_adversarial.json").questions
    assert [(q.image, normalised(q.text), q.label) for q in ours] == [
        (q.image, normalised(q.text), q.label) for q in theirs
    ]


def test_every_published_file_loads_and_scores_its_own_labels(shared_data):
    files = sorted((shared_data / "pope").rglob("*_pope_*.json"))
    assert len(files) >= 24
    for path in files:
        questions = load_questions(path).questions
        assert {q.label for q in questions} == {"yes", "no"}
        score = score_pope([Answered(q, str(q.label)) for q in questions])
        assert (score["accuracy"], score["unreadable"], score["n"]) == (1, 0, len(questions))
        assert all(q.object for q in questions)
