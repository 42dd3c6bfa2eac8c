import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.parsers import PARSERS
from lvlm_attn.evals.pope.answers import Answered
from lvlm_attn.evals.pope.data import Question, load_questions
from lvlm_attn.evals.pope.runs import match_answers
from lvlm_attn.evals.pope.score import Counts, count, metrics, score_pope


def question(number, label, category="random", name="dog"):
    text = f"Is there a {name} in the image?"
    return Question(f"{category}:{number}", number, f"{number // 2}.jpg", text, label, category)


def answered(*pairs, category="random"):
    return [Answered(question(i, label, category), text) for i, (label, text) in enumerate(pairs)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("parser", PARSERS)
def test_published_llava_answers(shared_data, parser):
    """LLaVA-1.5-7B, greedy, COCO random: the values published with these answers."""
    questions = load_questions(shared_data / "pope/DAMO_VCD/coco/coco_pope_random.json").questions
    path = shared_data / "pope/cd_rethink_outputs/llava-7b-coco-random-greedy.jsonl"
    pairs, failed = match_answers([path], questions)
    score = score_pope(pairs, parser, failed)
    percent = {
        name: round(100 * score[name], 2) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")
    }
    assert percent == {
        "accuracy": 87.00,
        "precision": 96.64,
        "recall": 76.67,
        "f1": 85.50,
        "yes_ratio": 39.67,
    }
    assert (score["n"], score["unknown"], score["failed"]) == (3000, 0, 0)


def test_answers_of_another_split_are_refused(shared_data):
    questions = load_questions(shared_data / "pope/DAMO_VCD/coco/coco_pope_popular.json").questions
    path = shared_data / "pope/cd_rethink_outputs/llava-7b-coco-random-greedy.jsonl"
    with pytest.raises(LvlmAttnError, match="question file the answers were made for"):
        match_answers([path], questions)


def test_metrics_by_hand():
    values = metrics(Counts(tp=6, fp=2, tn=7, fn=3, unknown_yes=1, unknown_no=1))
    assert values["accuracy"] == pytest.approx(13 / 20)
    assert values["precision"] == pytest.approx(6 / 8)
    assert values["recall"] == pytest.approx(6 / 10)
    assert values["f1"] == pytest.approx(2 / 3)
    assert values["yes_ratio"] == pytest.approx(8 / 20)
    assert values["balanced_accuracy"] == pytest.approx((0.6 + 0.7) / 2)
    assert values["mcc"] == pytest.approx((6 * 7 - 3 * 4) / (9 * 10 * 10 * 11) ** 0.5)
    assert (values["unknown"], values["n"]) == (2, 20)
    assert metrics(Counts(tp=6, fp=2, tn=7, fn=3, unknown_yes=1), unknown_is_wrong=False)["recall"] == 6 / 9


def test_nothing_said_yes_divides_by_nothing():
    values = metrics(Counts(tn=2, fn=2))
    assert (values["precision"], values["recall"], values["f1"], values["mcc"]) == (0, 0, 0, 0)
    assert values["accuracy"] == 0.5


def test_unreadable_answers_are_counted_and_wrong():
    items = answered(("yes", "Yes"), ("no", "No"), ("yes", "maybe"), ("no", "banana"))
    score = score_pope(items)
    assert (score["unknown"], score["accuracy"], score["recall"], score["n"]) == (2, 0.5, 0.5, 4)
    assert (score["tp"], score["fp"], score["tn"], score["fn"]) == (1, 0, 1, 0)
    official = score_pope(items, "official")
    assert (official["unknown"], official["unreadable"], official["accuracy"]) == (0, 2, 0.75)


def test_vcd_looks_at_the_label():
    counts = count(answered(("yes", "I know"), ("no", "I know"), ("no", "maybe")), "vcd")
    assert counts == Counts(tp=0, fp=1, tn=1, fn=1)


def test_categories_mean_and_pool_are_kept_apart():
    items = answered(("yes", "yes"), ("no", "yes")) + answered(
        ("yes", "yes"), ("no", "no"), category="popular"
    )
    score = score_pope(items)
    assert score["aggregation"] == "pooled"
    assert [score["per_category"][name]["f1"] for name in ("random", "popular")] == [
        pytest.approx(2 / 3),
        1.0,
    ]
    assert score["mean"]["f1"] == pytest.approx(5 / 6)
    assert score["f1"] == pytest.approx(0.8)
    assert score["false_yes_objects"] == {"dog": 1}


def test_a_question_without_label_is_refused():
    with pytest.raises(LvlmAttnError, match=r"random:0 has no label"):
        score_pope(answered((None, "yes")))
    with pytest.raises(LvlmAttnError, match="no answers to score"):
        score_pope([])


QUESTIONS = [question(i, "yes" if i % 2 == 0 else "no", name=f"thing{i}") for i in range(6)]
TEXTS = ["Yes", "No", "Yes", "No", "Yes", "Yes"]


@pytest.mark.parametrize(
    "rows",
    [
        [{"question_id": q.question_id, "text": t} for q, t in reversed(list(zip(QUESTIONS, TEXTS)))],
        [{"question_id": str(q.question_id), "prompt": q.text, "text": t} for q, t in zip(QUESTIONS, TEXTS)],
        [
            {"question": q.text, "image": q.image, "answer": t}
            for q, t in reversed(list(zip(QUESTIONS, TEXTS)))
        ],
        [{"question": q.text, "answer": t} for q, t in zip(QUESTIONS, TEXTS)],
        [{"answer": t} for t in TEXTS],
        [{"sample_id": q.sample_id, "question": q.text, "raw_text": t} for q, t in zip(QUESTIONS, TEXTS)],
    ],
)
def test_answer_formats_match_alike(tmp_path, rows):
    pairs, failed = match_answers([write(tmp_path / "a.jsonl", rows)], QUESTIONS)
    assert [pair.text for pair in pairs] == TEXTS
    assert failed == 0


def test_missing_answers_are_an_error_unless_partial(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"question_id": i, "text": "Yes"} for i in range(4)])
    with pytest.raises(LvlmAttnError, match=r"2 of 6 questions have no answer .*random:4"):
        match_answers([path], QUESTIONS)
    assert len(match_answers([path], QUESTIONS, partial=True)[0]) == 4


def test_wrong_length_without_ids(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"answer": "Yes"}])
    with pytest.raises(LvlmAttnError, match="1 answers for 6 questions"):
        match_answers([path], QUESTIONS)


def test_entry_without_answer_names_the_line(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"answer": "Yes"}, {"said": "Yes"}])
    with pytest.raises(LvlmAttnError, match="line 2: no answer text"):
        match_answers([path], QUESTIONS)


def test_a_retried_sample_counts_once_and_a_failed_one_is_reported(tmp_path):
    rows = [{"sample_id": q.sample_id, "raw_text": t} for q, t in zip(QUESTIONS, TEXTS)]
    broken = {"sample_id": "random:0", "raw_text": None, "error": "truncated"}
    pairs, failed = match_answers([write(tmp_path / "a.jsonl", [broken, *rows])], QUESTIONS)
    assert (len(pairs), failed) == (6, 0)
    pairs, failed = match_answers([write(tmp_path / "b.jsonl", [broken, *rows[1:]])], QUESTIONS)
    assert (len(pairs), failed) == (5, 1)


def test_one_answer_file_per_category(tmp_path):
    both = [*QUESTIONS, *(question(i, "no", "popular") for i in range(2))]
    first = write(tmp_path / "1.jsonl", [{"question_id": q.question_id, "text": "Yes"} for q in QUESTIONS])
    second = write(tmp_path / "2.jsonl", [{"question_id": i, "text": "No"} for i in range(2)])
    pairs, _ = match_answers([first, second], both)
    assert [pair.text for pair in pairs] == ["Yes"] * 6 + ["No"] * 2
    third = write(tmp_path / "3.jsonl", [{"question_id": 0, "text": "Yes"}])
    with pytest.raises(LvlmAttnError, match="3 answer files for 2 question categories"):
        match_answers([first, second, third], both)
