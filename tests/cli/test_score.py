"""Scoring from the command line: inputs that circulate, each with the value that is right."""

import json

import pytest
from PIL import Image

from lvlm_attn.cli.main import main
from tests.evals.conftest import untrained  # noqa: F401

Q2 = [
    {"question_id": 1, "image": "a.jpg", "text": "Is there a lamp in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.jpg", "text": "Is there a goat in the image?", "label": "no"},
]
TRUTH = [{"image_id": 1, "objects": ["dog"]}, {"image_id": 2, "objects": ["dog"]}]
HUB = [
    {"id": "0", "question_id": "1", "question": Q2[0]["text"], "answer": "yes", "category": "random",
     "image_source": "COCO_val2014_000000000001"},
]  # fmt: skip
COCO = {
    "images": [{"id": 1, "file_name": "COCO_val2014_000000000001.jpg"}],
    "categories": [{"id": 18, "name": "dog"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 18}],
}
REFERENCES = {
    "images": COCO["images"],
    "annotations": [{"id": 1, "image_id": 1, "caption": "A zebra on a couch."}],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LVLM_ATTN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path):
    def write(name, value):
        """Writes text as it is, a dict as one JSON object, a list as JSON lines."""
        text = value if isinstance(value, str) else json.dumps(value)
        (tmp_path / name).write_text("\n".join(map(json.dumps, value)) if isinstance(value, list) else text)
        return tmp_path / name

    return write


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(item) for item in arguments])
    printed = capsys.readouterr()
    return stopped.value.code or 0, printed.out, printed.err


@pytest.fixture
def pope(capsys, write):
    def pope(answers, *options, questions=Q2, name="a.jsonl"):
        files = ["--answers", write(name, answers), "--questions", write("q2.jsonl", questions)]
        code, out, err = call(capsys, "eval", "score", "pope", *files, *options, "--json")
        return (json.loads(out), err) if code == 0 else (None, err)

    return pope


@pytest.fixture
def chair(capsys, write):
    def chair(answers, *options, truth=TRUTH, name="c.json"):
        files = ["--answers", write(name, answers)]
        files += ["--ground-truth", write("truth.json", truth)] if truth else []
        code, out, err = call(capsys, "eval", "score", "chair", *files, *options, "--json")
        return (json.loads(out), err) if code == 0 else (None, err)

    return chair


def test_captions_in_a_one_line_array(chair):
    result, _ = chair('[{"image_id": 1, "caption": "a zebra"}, {"image_id": 2, "caption": "a dog"}]')
    assert (result["n"], result["chair_s"]) == (2, 0.5)


@pytest.mark.parametrize(
    "answers",
    [
        '[{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "No"}]',
        [{"question_id": 1.0, "text": "Yes"}, {"question_id": 2.0, "text": "No"}],
    ],
    ids=["one-line array", "ids as floats"],
)
def test_all_right(pope, answers):
    result, _ = pope(answers)
    assert (result["n"], result["accuracy"]) == (2, 1)


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        (
            json.dumps(
                [
                    {"index": 0, "question": Q2[0]["text"], "answer": "Yes", "prediction": "No"},
                    {"index": 1, "question": Q2[1]["text"], "answer": "No", "prediction": "Yes"},
                ],
                indent=1,
            ),
            "prediction",
        ),
        (
            [
                {"question_id": 1, "answer": "yes", "response": "No"},
                {"question_id": 2, "answer": "no", "response": "Yes"},
            ],
            "response",
        ),
    ],
)
def test_the_gold_column_is_not_scored_and_the_chosen_one_is_named(pope, answers, field):
    result, err = pope(answers)
    assert (result["accuracy"], result["answer_files"][0]["answer_field"]) == (0, field)
    assert f"read from {field!r}; gold, not scored: 'answer'" in err


def test_an_ambiguous_file_names_both_fields_and_the_option(pope):
    answers = [
        {"question_id": i, "prediction": "Yes", "response": text} for i, text in ((1, "Yes"), (2, "No"))
    ]
    result, err = pope(answers)
    assert result is None
    assert "'prediction' and 'response'" in err
    assert "--answer-field response" in err
    assert pope(answers, "--answer-field", "response")[0]["accuracy"] == 1


def test_a_perfect_score_from_a_field_named_answer_is_questioned(capsys, write):
    questions = [
        *Q2,
        {"question_id": 3, "image": "b.jpg", "text": "Is there a cup in the image?", "label": "no"},
    ]
    gold = [{"question_id": row["question_id"], "answer": row["label"]} for row in questions]
    files = ["--answers", write("a.jsonl", gold), "--questions", write("q.jsonl", questions)]
    assert "is 'answer' in a.jsonl the gold answer?" in call(capsys, "eval", "score", "pope", *files)[2]


def test_vlmevals_rule(pope):
    result, _ = pope(
        [{"question_id": 1, "text": "Yes,there is a lamp"}, {"question_id": 2, "text": "**No**"}],
        "--parser",
        "vlmeval",
    )
    assert (result["tp"], result["unknown"], result["n"]) == (1, 1, 2)


def test_echoes_and_reasoning_are_skipped_and_counted(pope):
    texts = {1: "Please answer yes or no. No", 2: "<think>yes or no?</think> No"}
    result, _ = pope([{"question_id": number, "text": text} for number, text in texts.items()])
    assert (result["fn"], result["tn"], result["unknown"]) == (1, 1, 0)
    assert (result["echoed"], result["reasoning"], result["unfinished_reasoning"]) == (1, 1, 0)


def test_an_id_given_twice_is_named(pope):
    result, err = pope([{"question_id": i, "text": "No"} for i in (1, 2, 2)])
    assert result is None
    assert "question id 2 twice" in err


@pytest.mark.parametrize("swapped", [False, True])
def test_splits_are_never_scored_crosswise(capsys, write, swapped):
    answers = [
        write(
            "ans_adversarial.jsonl", [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "Yes"}]
        ),
        write("ans_random.jsonl", [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "No"}]),
    ]
    questions = [write(f"q_{split}.jsonl", Q2) for split in ("random", "adversarial")]
    given = [item for path in (reversed(answers) if swapped else answers) for item in ("--answers", path)]
    asked = [item for path in questions for item in ("--questions", path)]
    result = json.loads(call(capsys, "eval", "score", "pope", *given, *asked, "--json")[1])
    assert {name: row["accuracy"] for name, row in result["per_category"].items()} == {
        "random": 1,
        "adversarial": 0.5,
    }
    code, _, err = call(capsys, "eval", "score", "pope", "--answers", answers[0], "--questions", questions[0])
    assert code == 2
    assert "named after the split adversarial, the questions are random" in err


def test_several_answer_files_are_several_rows(capsys, write):
    files = [
        write(f"{name}.jsonl", [{"question_id": i, "text": name} for i in (1, 2)]) for name in ("yes", "no")
    ]
    arguments = ["eval", "score", "pope", "--questions", write("q2.jsonl", Q2)]
    arguments += [item for path in files for item in ("--answers", path)]
    runs = json.loads(call(capsys, *arguments, "--json")[1])["runs"]
    assert {name: run["yes_ratio"] for name, run in runs.items()} == {"yes": 1, "no": 0}
    lines = [line.strip() for line in call(capsys, *arguments)[1].splitlines()]
    assert {"yes", "no"} <= {line.split(" ")[0] for line in lines if line}
    captions = [
        write(f"c{i}.jsonl", [{"image_id": 1, "caption": text}]) for i, text in enumerate(("a dog", "a cat"))
    ]
    given = [item for path in captions for item in ("--answers", path)]
    out = call(capsys, "eval", "score", "chair", *given, "--ground-truth", write("t.jsonl", TRUTH), "--json")[
        1
    ]
    assert {name: run["chair_s"] for name, run in json.loads(out)["runs"].items()} == {"c0": 0, "c1": 1}


@pytest.mark.parametrize(
    "answers",
    [
        {"overall": {}, "imgToEval": {"0": {"image_id": 1, "caption": "a dog"}}},
        {"sentences": [{"image_id": 1, "caption": "a dog"}], "overall_metrics": {}},
        {"image_id": 1, "response": "a dog"},
        {"question_id": 1, "text": "a dog"},
    ],
)
def test_captions_of_other_tools(chair, answers):
    result, err = chair(answers)
    assert (result["n"], result["chair_s"], result["recall"]) == (1, 0, 1)
    assert ("question_id is taken for the picture's id" in err) == ("question_id" in answers)


def test_cocos_own_files_are_ground_truth(chair, write):
    caption = {"image_id": 1, "response": "a dog and a zebra"}
    result, err = chair(caption, truth=COCO)
    assert (result["chair_i"], result["recall"]) == (0.5, 1)
    assert "no reference captions" in err
    both = ["--instances", write("i.json", COCO), "--captions", write("r.json", REFERENCES)]
    result, err = chair(caption, *both, truth=None)
    assert (result["chair_i"], result["recall"]) == (0, pytest.approx(2 / 3))
    assert "no reference captions" not in err
    assert "--instances FILE" in chair(caption, truth=None)[1]


@pytest.mark.parametrize(
    ("name", "answers", "recall"),
    [
        (
            "lmms.jsonl",
            [{"doc_id": 0, "target": "yes", "resps": [["Yes"]], "filtered_resps": ["Yes"],
              "doc": {"question_id": "1", "question": Q2[0]["text"], "answer": "yes", "category": "random"}}],
            1,
        ),
        ("vlmeval.tsv", f"index\tquestion\tanswer\tprediction\n0\t{Q2[0]['text']}\tYes\tNo\n", 0),
    ],
)  # fmt: skip
def test_logs_of_other_harnesses_with_the_hubs_questions(pope, name, answers, recall):
    result, _ = pope(answers, questions=HUB, name=name)
    assert (result["n"], result["recall"], list(result["per_category"])) == (1, recall, ["random"])
    assert pope(answers, "--partial", name=name)[0]["recall"] == recall


def test_other_spellings_are_found(chair):
    caption = {"image_id": 1, "caption": "hotdogs, an aeroplane, a surf board, a tennis racquet"}
    truth = [{"image_id": 1, "objects": ["hot dog", "airplane", "surfboard", "tennis racket"]}]
    result, _ = chair(caption, truth=truth)
    assert (result["mentions"], result["recall"], result["chair_s"]) == (4, 1, 0)


def test_repopes_labels(pope, write):
    repope = [{**Q2[1], "question_id": 1, "label": "yes"}]
    answers = [{"question_id": i, "text": "Yes"} for i in (1, 2)]
    result, err = pope(answers, "--relabel", write("repope.jsonl", repope))
    assert (result["n"], result["tp"], result["relabel"]) == (1, 1, {"dropped": 1, "changed": 1})
    assert "1 labels changed, 1 questions dropped" in err


def test_names_with_line_breaks_make_one_sentence(capsys, write):
    answers = write("a.jsonl", [{"question_id": "1\n2", "text": "Yes"}] * 2)
    code, _, err = call(
        capsys, "eval", "score", "pope", "--answers", answers, "--questions", write("q.jsonl", Q2)
    )
    assert code == 2
    assert err.count("\n") == 1


def test_chair_truth(capsys, tmp_path, write):
    files = ["--instances", write("i.json", COCO), "--captions", write("r.json", REFERENCES)]
    out = tmp_path / "deep" / "truth.jsonl"
    code, said, _ = call(capsys, "chair", "truth", *files, "--out", out)
    assert (code, "1 pictures, mode strict" in said) == (0, True)
    assert json.loads(out.read_text())["objects"] == ["dog", "zebra", "couch"]
    code, _, err = call(
        capsys, "chair", "truth", *files, "--out", out, "--ids", write("ids.txt", "000000000009.jpg\n")
    )
    assert code == 2
    assert "1 of 1 pictures are not in the COCO files (first: 9)" in err
    code, _, err = call(capsys, "chair", "truth", "--out", out)
    assert (code, "instances_*.json" in err) == (2, True)


def test_pope_build_from_cocos_files(capsys, tmp_path, write):
    rows = [{"id": i, "file_name": f"{i}.jpg"} for i in (1, 2)]
    coco = {"images": rows, "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
            "annotations": [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 2}]}  # fmt: skip
    given = write("instances_val2014.json", coco)
    assert call(capsys, "pope", "build", "--instances", given, "--k", 1, "--out", tmp_path / "out")[0] == 0
    built = (tmp_path / "out" / "coco_pope_popular.json").read_text().splitlines()
    assert [(row["image"], row["text"], row["label"]) for row in map(json.loads, built)] == [
        ("1.jpg", "Is there a dog in the image?", "yes"),
        ("1.jpg", "Is there a cat in the image?", "no"),
        ("2.jpg", "Is there a cat in the image?", "yes"),
        ("2.jpg", "Is there a dog in the image?", "no"),
    ]
    code, _, err = call(
        capsys, "pope", "build", "--instances", given, "--objects", given, "--out", tmp_path / "out"
    )
    assert (code, "name one" in err) == (2, True)


@pytest.mark.parametrize(
    "image", ["/elsewhere/val2014/a.jpg", "val2014/a.jpg", "COCO_val2014_000000000001", 1]
)
def test_pictures_are_found_by_any_name(capsys, tmp_path, write, untrained, image):  # noqa: F811
    for name in ("a.jpg", "COCO_val2014_000000000001.jpg"):
        Image.new("RGB", (24, 24)).save(tmp_path / name)
    questions = write("q.jsonl", [{**Q2[0], "image": image}])
    arguments = [
        "--model",
        untrained,
        "--questions",
        questions,
        "--images",
        tmp_path,
        "--out",
        tmp_path / "run",
    ]
    code, out, err = call(capsys, "eval", "pope", *arguments, "--max-new-tokens", 1, "--json")
    assert (code, json.loads(out)["n"]) == (0, 1), err


def test_eval_chair_describes_the_pictures_of_coco_that_are_in_the_folder(capsys, tmp_path, write, untrained):  # noqa: F811
    Image.new("RGB", (24, 24)).save(tmp_path / "COCO_val2014_000000000001.jpg")
    coco = {**COCO, "images": [*COCO["images"], {"id": 2, "file_name": "COCO_val2014_000000000002.jpg"}]}
    arguments = ["--model", untrained, "--images", tmp_path, "--out", tmp_path / "run", "--max-new-tokens", 1]
    code, out, err = call(capsys, "eval", "chair", *arguments, "--instances", write("i.json", coco), "--json")
    assert (code, json.loads(out)["n"]) == (0, 1), err


def test_answers_that_are_all_the_same_are_told(capsys, write):
    def told(texts):
        asked = [
            {"question_id": i, "image": f"{i}.jpg", "text": f"Is there a cat{i} in the image?"}
            for i in range(4)
        ]
        questions = write(
            "q.jsonl", [{**item, "label": ("yes", "no")[i % 2]} for i, item in enumerate(asked)]
        )
        answers = write("a.jsonl", [{"question_id": i, "answer": text} for i, text in enumerate(texts)])
        _, _, err = call(capsys, "eval", "score", "pope", "--answers", answers, "--questions", questions)
        return "every answer is 'no'" in err

    assert told(["No", "no.", "No.", " no"])
    assert not told(["No", "no.", "No.", "yes"])


def test_scoring_imports_neither_torch_nor_transformers(tmp_path, write):
    import subprocess
    import sys

    answers = write("a.jsonl", [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "No"}])
    captions = write("c.jsonl", [{"image_id": 1, "caption": "a dog"}])
    pope = ["eval", "score", "pope", "--answers", answers, "--questions", write("q.jsonl", Q2)]
    chair = ["eval", "score", "chair", "--answers", captions, "--instances", write("i.json", COCO)]
    code = (
        "import sys\nfrom lvlm_attn.cli.main import main\n"
        f"for arguments in {[list(map(str, pope)), list(map(str, chair))]!r}:\n"
        "    try:\n        main(arguments)\n    except SystemExit as e:\n        assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'PIL', 'datasets', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
