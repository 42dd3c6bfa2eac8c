"""Which answers belong to which questions, and which files are one run."""

import json
from dataclasses import replace

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.pope.data import Question, load_questions
from lvlm_attn.evals.pope.relabel import relabel
from lvlm_attn.evals.pope.runs import match_runs


def ask(split, *labels, source="coco_pope"):
    return [
        Question(
            f"{split}:{i}",
            i,
            f"COCO_val2014_{i:012d}.jpg",
            f"Is there a {split}{i} in the image?",
            label,
            split,
            source,
        )
        for i, label in enumerate(labels, 1)
    ]


RANDOM, POPULAR = ask("random", "yes", "no", "yes"), ask("popular", "no", "no", "yes")
BOTH = [*RANDOM, *POPULAR]


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def by_id(path, *texts):
    return write(path, *({"question_id": i, "text": text} for i, text in enumerate(texts, 1)))


def texts(run):
    return {item.question.sample_id: item.text for item in run.answered}


def matched(path, questions=RANDOM, **options):
    (run,) = match_runs([path], questions, **options).values()
    return [item.text for item in run.answered], run.files[0][1]


TOLD = {"image": 1, "question": "Is there a random1 in the image?"}


@pytest.mark.parametrize(
    ("key", "values", "by"),
    [
        ("question_id", [3.0, 1.0, 2.0], "question_id"),
        ("question_id", ["3", "01", "2.0"], "question_id"),
        ("index", [3, 1, 2], "index"),
        ("id", ["3", "1", "2"], "index"),
        ("question", [f"is there {name} in the image" for name in ("random3", "a random1", "the random2")], "question"),
        ("prompt", [f"USER: Is there a random{i} in the image?\nOne word. ASSISTANT:" for i in (3, 1, 2)], "question"),
    ],
)  # fmt: skip
def test_answers_find_their_questions(tmp_path, key, values, by):
    rows = [{key: value, "text": str(n)} for value, n in zip(values, (3, 1, 2))]
    assert matched(write(tmp_path / "a.jsonl", *rows)) == (["1", "2", "3"], by)


@pytest.mark.parametrize(
    "name",
    ["COCO_val2014_00000000000{}.jpg", "/data/val2014/00000000000{}.jpg", "{}", "COCO_val2014_00000000000{}"],
)
def test_pictures_are_matched_by_any_of_their_names_whatever_the_ids(tmp_path, name):
    rows = [
        {"question_id": 9 - i, "image": name.format(i), "question": RANDOM[i - 1].text, "answer": str(i)}
        for i in (3, 1, 2)
    ]
    assert matched(write(tmp_path / "a.jsonl", *rows)) == (["1", "2", "3"], "picture and question")


def test_indices_that_count_from_0_name_no_question(tmp_path):
    rows = [
        {"index": i, "question": f"Is there a random{3 - i} in the image?", "prediction": str(3 - i)}
        for i in range(3)
    ]
    assert matched(write(tmp_path / "a.jsonl", *rows)) == (["1", "2", "3"], "question")
    path = write(tmp_path / "b.jsonl", *({"index": i, "prediction": str(i)} for i in range(3)))
    (run,) = match_runs([path], RANDOM).values()
    assert [item.text for item in run.answered] == ["0", "1", "2"]
    assert "by order" in run.notes[1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": 1}, {"question_id": 2}, {"question_id": 2}], r"gives question id 2 twice"),
        ([{"question_id": 1}, {"question_id": 2}], r"1 of 3 questions have no answer .*random:3"),
        ([{}, {}], r"2 answers for 3 questions and no ids"),
        (
            [{"question_id": i, "prompt": "Is there a cat in the image?"} for i in (1, 2, 3)],
            "question file the answers",
        ),
        ([{"question_id": i, "image": "9.jpg"} for i in (1, 2, 3)], "answers '9' where question 1"),
        (
            [{"question_id": i, "category": "popular"} for i in (1, 2, 3)],
            "split popular, the questions are random",
        ),
        ([{"sample_id": f"popular:{i}"} for i in (1, 2, 3)], "answers other questions"),
        ([{**TOLD}, {**TOLD, "text": "No"}, {**TOLD}], "in different ways"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, rows, message):
    path = write(tmp_path / "a.jsonl", *({"text": "Yes", **row} for row in rows))
    with pytest.raises(LvlmAttnError, match=message):
        match_runs([path], RANDOM[:1] if "ways" in message else RANDOM)


def run_folder(folder, *names, questions=RANDOM, stem="q"):
    """Answers as a run of the questions under another file's name writes them."""
    folder.mkdir()
    files = [{"name": name, "sha256": "0", "rows": 3} for name in names]
    settings = {"benchmark": {"name": "pope", "files": files}}
    (folder / "config.json").write_text(json.dumps({"settings": settings}))
    rows = [
        {
            "sample_id": f"{stem}:{q.question_id}",
            "image": q.image,
            "question": q.text,
            "category": stem,
            "raw_text": str(q.question_id),
        }
        for q in questions
    ]
    return write(folder / "samples.jsonl", *rows)


def test_a_renamed_question_file_is_scored_by_pictures_and_questions(tmp_path):
    path = run_folder(tmp_path / "run", "q.json")
    assert matched(path, RANDOM[::-1]) == (["3", "2", "1"], "picture and question")
    other = [replace(question, text=question.text.replace("random", "dog")) for question in RANDOM]
    with pytest.raises(LvlmAttnError, match="answers other questions"):
        match_runs([path], other)
    begun = run_folder(tmp_path / "begun", "q.json", questions=RANDOM[:1])
    assert matched(begun, RANDOM, partial=True) == (["1"], "picture and question")


def test_answers_to_more_questions_name_both_files(tmp_path):
    half = [replace(question, source="half") for question in RANDOM[:1]]
    path = run_folder(tmp_path / "run", "q.json")
    with pytest.raises(
        LvlmAttnError, match=r"made with q\.json, and these questions are of half \(q:1 is not"
    ):
        match_runs([path], half)


def test_an_answer_given_once_serves_every_split_that_asks(tmp_path):
    twice = [
        *RANDOM,
        *(
            Question(f"popular:{q.question_id}", q.question_id, q.image, q.text, q.label, "popular")
            for q in RANDOM
        ),
    ]
    rows = [{"image": q.image, "question": q.text, "answer": str(q.question_id)} for q in RANDOM]
    assert matched(write(tmp_path / "a.jsonl", *rows), twice)[0] == ["1", "2", "3", "1", "2", "3"]


def test_rows_with_categories_are_told_apart_by_them(tmp_path):
    rows = [
        {"question_id": q.question_id, "category": q.category.title(), "text": q.sample_id}
        for q in reversed(BOTH)
    ]
    (run,) = match_runs([write(tmp_path / "a.jsonl", *rows)], BOTH).values()
    assert texts(run) == {q.sample_id: q.sample_id for q in BOTH}


def test_answers_to_questions_not_asked_are_counted(tmp_path):
    (run,) = match_runs([by_id(tmp_path / "a.jsonl", "a", "b", "c", "d", "e")], RANDOM).values()
    assert (len(run.answered), run.unasked) == (3, 2)
    assert "2 answers are left out" in run.notes[-1]


def test_several_files_for_one_question_file_are_several_runs(tmp_path):
    paths = [
        by_id(tmp_path / name, *answers)
        for name, answers in [("a.jsonl", "yyy"), ("b.jsonl", "nnn"), ("x/a.jsonl", "yny")]
    ]
    runs = match_runs(paths, RANDOM)
    assert {name: "".join(texts(run).values()) for name, run in runs.items()} == {
        f"{tmp_path.name}/a": "yyy",
        "b": "nnn",
        "x/a": "yny",
    }
    with pytest.raises(LvlmAttnError, match="named twice"):
        match_runs([paths[0], paths[0]], RANDOM)


def test_run_folders_are_named_after_themselves(tmp_path):
    paths = [
        write(
            tmp_path / name / "samples.jsonl", *({"sample_id": q.sample_id, "raw_text": name} for q in BOTH)
        )
        for name in ("var", "vhr")
    ]
    assert {name: set(texts(run).values()) for name, run in match_runs(paths, BOTH).items()} == {
        "var": {"var"},
        "vhr": {"vhr"},
    }


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_files_that_differ_in_the_split_are_one_run_in_any_order(tmp_path, order):
    files = [
        by_id(tmp_path / "llava-coco-random-greedy.jsonl", "a", "b", "c"),
        by_id(tmp_path / "llava-coco-popular-greedy.jsonl", "d", "e", "f"),
        by_id(tmp_path / "llava-coco-random-sample.jsonl", "g", "h", "i"),
        by_id(tmp_path / "llava-coco-popular-sample.jsonl", "j", "k", "l"),
    ]
    runs = match_runs([files[at] for at in order], BOTH)
    assert {name: "".join(texts(run).values()) for name, run in runs.items()} == {
        "llava-greedy": "abcdef",
        "llava-sample": "ghijkl",
    }


def test_splits_may_be_folders(tmp_path):
    files = [
        by_id(tmp_path / split / "answers.jsonl", *found)
        for split, found in [("popular", "def"), ("random", "abc")]
    ]
    (run,) = match_runs(files, BOTH).values()
    assert "".join(texts(run).values()) == "abcdef"


def test_a_split_that_is_not_asked_is_refused(tmp_path):
    path = by_id(tmp_path / "adversarial.jsonl", *"abc")
    with pytest.raises(
        LvlmAttnError, match="named after the split adversarial, the questions are popular and random"
    ):
        match_runs([path], BOTH)
    told = [{"image": q.image, "question": q.text, "answer": "a"} for q in RANDOM]
    assert len(matched(write(tmp_path / "adversarial-seed.jsonl", *told))[0]) == 3


def test_a_data_set_that_is_not_asked_is_refused(tmp_path):
    with pytest.raises(LvlmAttnError, match="named after gqa, the questions are from coco"):
        match_runs([by_id(tmp_path / "gqa_random.jsonl", *"abc")], RANDOM)


def test_files_for_some_splits_only(tmp_path):
    path = by_id(tmp_path / "random.jsonl", *"abc")
    with pytest.raises(LvlmAttnError, match=r"no answer file is for the questions of popular .*--partial"):
        match_runs([path], BOTH)
    (run,) = match_runs([path], BOTH, partial=True).values()
    assert texts(run) == {"random:1": "a", "random:2": "b", "random:3": "c"}


def test_files_that_tell_no_split_are_taken_in_order_and_that_is_said(tmp_path):
    files = [by_id(tmp_path / name, *found) for name, found in [("x.jsonl", "abc"), ("y.jsonl", "def")]]
    (run,) = match_runs(files, BOTH).values()
    assert "".join(texts(run).values()) == "abcdef"
    assert any("order of the question files" in note for note in run.notes)
    with pytest.raises(LvlmAttnError, match=r"put the split .* into the file's name"):
        match_runs(files[:1], BOTH)


def test_repope_relabels_by_picture_and_question_and_counts_what_it_drops(tmp_path):
    repope = [
        Question(
            "random:1", 1, RANDOM[2].image, RANDOM[2].text.replace("a random", "the random"), "no", "random"
        ),
        Question("random:2", 2, "1.jpg", RANDOM[0].text, "yes", "random"),
    ]
    done = relabel(RANDOM, repope)
    assert [(q.question_id, q.label) for q in done.questions] == [(1, "yes"), (3, "no")]
    assert (done.dropped, done.changed) == (1, 1)
    (run,) = match_runs([by_id(tmp_path / "a.jsonl", "a", "b", "c")], done.questions).values()
    assert (texts(run), run.unasked) == ({"random:1": "a", "random:3": "c"}, 1)
    with pytest.raises(LvlmAttnError, match="none of the 3 questions"):
        relabel(POPULAR, repope)


def test_repope_alone_is_joined_by_picture_and_question(tmp_path):
    repope = [Question("random:1", 1, RANDOM[2].image, RANDOM[2].text, "no", "random")]
    told = [
        {"question_id": q.question_id, "image": q.image, "question": q.text, "text": str(q.question_id)}
        for q in RANDOM
    ]
    (run,) = match_runs([write(tmp_path / "a.jsonl", *told)], repope).values()
    assert (texts(run), run.unasked) == ({"random:1": "3"}, 2)
    bare = [{"question_id": q.question_id, "prompt": q.text, "text": "x"} for q in RANDOM]
    with pytest.raises(LvlmAttnError, match=r"--relabel"):
        match_runs([write(tmp_path / "b.jsonl", *bare)], repope)


def test_published_answers_against_every_published_file_of_their_questions(shared_data):
    answers = shared_data / "pope/cd_rethink_outputs/llava-7b-coco-random-greedy.jsonl"
    for name in (
        "DAMO_VCD/coco/coco_pope_random",
        "RUCAIBox_POPE/coco/coco_pope_random",
        "PAI_chat/coco_pope_chat_random",
    ):
        (run,) = match_runs([answers], load_questions(shared_data / f"pope/{name}.json").questions).values()
        assert (len(run.answered), run.unasked, run.failed) == (3000, 0, 0)


def test_published_answers_are_never_scored_against_other_questions(shared_data):
    answers = shared_data / "pope/cd_rethink_outputs/llava-7b-coco-random-greedy.jsonl"
    for name in ("coco/coco_pope_adversarial", "gqa/gqa_pope_random", "aokvqa/aokvqa_pope_random"):
        with pytest.raises(LvlmAttnError):
            match_runs([answers], load_questions(shared_data / f"pope/DAMO_VCD/{name}.json").questions)
