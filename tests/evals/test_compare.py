"""Comparison of runs: differences, tests, refusals, warnings and names."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.stats import binomtest

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.chair.score import Caption, score_chair
from lvlm_attn.evals.compare import compare
from lvlm_attn.evals.core.finished import names_of, read_run
from lvlm_attn.evals.pope.answers import Answered
from lvlm_attn.evals.pope.data import Question
from lvlm_attn.evals.pope.score import score_pope
from lvlm_attn.evals.reporting import report as la_report
from tests.evals.runs import GENERATION, answers, chair_lines, pope_lines, run_of, settings, write_run


def pope_metrics(lines, parser="strict"):
    answered = [
        Answered(
            Question(x["sample_id"], 1, x["image"], x["question"], x["label"], x["category"]), x["raw_text"]
        )
        for x in lines
    ]
    return score_pope(answered, parser)


@pytest.fixture
def pair():
    generator = np.random.default_rng(5)
    first = answers(generator)
    second = np.where(generator.random(len(first)) < 0.1, ~first, first)
    return pope_lines(first.tolist(), 40), pope_lines(second.tolist(), 40)


def test_differences_are_those_of_the_metrics_files(pair):
    found = compare([run_of("a", pair[0]), run_of("b", pair[1])])
    before, after = map(pope_metrics, pair)
    metrics = found.runs["b"].metrics
    assert {"accuracy", "precision", "recall", "f1", "yes_ratio"} <= set(metrics)
    for name, change in metrics.items():
        assert change.difference == pytest.approx(after[name] - before[name], abs=1e-12)
        assert change.low <= change.difference <= change.high


def test_accuracy_is_tested_by_exact_mcnemar(pair):
    found = compare([run_of("a", pair[0]), run_of("b", pair[1])]).runs["b"]
    right = [[x["raw_text"].lower() == x["label"] for x in lines] for lines in pair]
    better = sum(b and not a for a, b in zip(*right))
    worse = sum(a and not b for a, b in zip(*right))
    assert (found.better, found.worse) == (better, worse)
    assert found.metrics["accuracy"].p == pytest.approx(binomtest(worse, worse + better).pvalue)


def test_repeats_of_a_question_count_once(pair):
    def thrice(lines):
        return [
            {**line, "sample_id": f"{split}:{line['question_id']}", "category": split}
            for split in ("random", "popular", "adversarial")
            for line in lines
        ]

    once = compare([run_of("a", pair[0]), run_of("b", pair[1])]).runs["b"]
    more = compare([run_of("a", thrice(pair[0])), run_of("b", thrice(pair[1]))]).runs["b"]
    assert (more.samples, more.questions, more.pictures) == (3 * once.samples, once.questions, once.pictures)
    for name, change in more.metrics.items():
        assert asdict(change) == pytest.approx(asdict(once.metrics[name]), abs=1e-9)


def test_chair_differences(tmp_path):
    captions = ["A dog and a cat sit here.", "A dog runs.", "A bird and a dog.", "Two dogs."]
    others = ["A dog sits here.", "A dog runs.", "A bird and a dog.", "Two cats."]
    made = settings("chair")
    runs = [run_of(n, chair_lines(t), made, {"mode": "strict"}) for n, t in (("a", captions), ("b", others))]
    found = compare(runs).runs["b"]
    before, after = (
        score_chair([Caption(str(i), text) for i, text in enumerate(texts)], {key: {"dog"} for key in "0123"})
        for texts in (captions, others)
    )
    for name, change in found.metrics.items():
        assert (change.before, change.after) == pytest.approx((before[name], after[name]))
    assert (found.better, found.worse, found.metrics["chair_s"].p) == (1, 1, 1.0)


def test_json_is_as_promised(tmp_path, pair):
    first = write_run(tmp_path / "a" / "run", pair[0])
    second = write_run(tmp_path / "b" / "run", pair[1])
    third = write_run(tmp_path / "third", pair[0])
    found = la.compare([first, second, third]).to_dict()
    assert set(found) == {"reference", "runs"}
    assert found["reference"] == "a/run"
    assert list(found["runs"]) == ["b/run", "third"]
    for metrics in found["runs"].values():
        for change in metrics.values():
            assert set(change) == {"difference", "low", "high", "p", "p_holm"}
            assert change["p"] <= change["p_holm"] <= min(1.0, 2 * change["p"])
    assert json.loads(json.dumps(found)) == found


def test_identical_runs_say_so(tmp_path, pair):
    first, second = (write_run(tmp_path / name, pair[0]) for name in ("a", "b"))
    found = la.compare([first, second])
    assert found.runs["b"].is_identical
    assert "identical" in str(found)
    assert all(
        (change.difference, change.low, change.high, change.p) == (0, 0, 0, 1)
        for change in found.runs["b"].metrics.values()
    )
    assert "identical" in str(la.compare([first, first]))


def test_names_of_runs(tmp_path):
    places = [tmp_path / name for name in ("x/a/run", "y/a/run", "y/b/run", "other")]
    assert names_of(places) == ["x/a/run", "y/a/run", "b/run", "other"]
    assert names_of([tmp_path / "one", tmp_path / "one"]) == ["one", "one (2)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generation": {**GENERATION, "decode": "sample", "temperature": 1.0}}, "decoding differs"),
        ({"generation": {**GENERATION, "num_beams": 5}}, "num_beams is 1 and 5"),
        ({"generation": {**GENERATION, "suffix": " Answer briefly."}}, "suffix"),
        ({"generation": {**GENERATION, "max_new_tokens": 64}}, "token limit differs"),
        ({"generation": {**GENERATION, "prompt_template": "U"}}, "prompt template"),
        ({"benchmark": {"name": "pope", "data": "others"}}, "questions differ"),
    ],
)
def test_runs_that_were_not_made_alike_are_refused(pair, changes, message):
    runs = [run_of("a", pair[0]), run_of("b", pair[0], settings(**changes))]
    with pytest.raises(LvlmAttnError, match=f"{message}.*--force"):
        compare(runs)
    assert compare(runs, force=True).runs["b"].is_identical


def test_other_questions_under_the_same_ids_are_refused(pair):
    other = [{**line, "question": "Is there a cat in the image?"} for line in pair[0]]
    with pytest.raises(LvlmAttnError, match="questions differ"):
        compare([run_of("a", pair[0]), run_of("b", other)])


def test_other_question_files_are_told_by_name(pair):
    def asking(name, sha256):
        files = [{"name": name, "sha256": sha256, "rows": 240}]
        return settings(benchmark={"name": "pope", "files": files, "fix_typo": False})

    first = run_of("a", pair[0], asking("my.jsonl", 64 * "0"))
    with pytest.raises(LvlmAttnError, match=r"questions differ \(my.jsonl and q.json\)"):
        compare([first, run_of("b", pair[0], asking("q.json", 64 * "1"))])
    with pytest.raises(LvlmAttnError, match=r"\(two files that are both called my.jsonl\)"):
        compare([first, run_of("b", pair[0], asking("my.jsonl", 64 * "1"))])
    assert compare([first, run_of("b", pair[0], asking("renamed.jsonl", 64 * "0"))]).runs["b"].is_identical


def test_other_benchmarks_and_no_common_sample_are_refused_even_if_forced(pair):
    chair = run_of("c", chair_lines(["A dog."]), settings("chair"), {"mode": "strict"})
    with pytest.raises(LvlmAttnError, match="one benchmark"):
        compare([run_of("a", pair[0]), chair], force=True)
    with pytest.raises(LvlmAttnError, match="no sample in common"):
        compare([run_of("a", pair[0][:5]), run_of("b", pair[0][5:])])
    with pytest.raises(LvlmAttnError, match="at least two"):
        compare([run_of("a", pair[0])])


def test_common_samples_are_compared_and_the_rest_is_counted(pair):
    found = compare([run_of("a", pair[0][:200]), run_of("b", pair[1][50:])]).runs["b"]
    assert (found.samples, found.dropped) == (150, 90)
    assert any("90 samples" in warning for warning in found.warnings)
    text = str(compare([run_of("a", pair[0][:200]), run_of("b", pair[1][50:])]))
    assert text.startswith("Warning: 90 samples are left out")
    assert text.count("90 samples") == 1


def test_another_limit_is_told_where_samples_are_left_out(tmp_path, pair):
    folders = [write_run(tmp_path / name, lines) for name, lines in (("a", pair[0][:6]), ("b", pair[1][:18]))]
    (interrupted,) = compare(folders).runs["b"].warnings[:1]
    assert "12 samples are left out" in interrupted
    assert "run an interrupted evaluation again" in interrupted
    config = json.loads((folders[0] / "config.json").read_text())
    (folders[0] / "config.json").write_text(json.dumps({**config, "limit": 6}))
    (told,) = compare(folders).runs["b"].warnings[:1]
    assert "a was run with --limit 6 and b with no --limit; run one again" in told
    assert "interrupted" not in told


def test_what_no_question_asks_about_is_a_dash_and_null(tmp_path, pair):
    only_yes = [[line for line in lines if line["label"] == "yes"][:10] for lines in pair]
    only_yes = [[{**line, "image": "0.jpg"} for line in lines] for lines in only_yes]
    first, second = (write_run(tmp_path / name, lines) for name, lines in zip("ab", only_yes))
    found = la.compare([first, second])
    asked = {"accuracy", "precision", "recall", "f1", "yes_ratio"}
    for metric, change in found.to_dict()["runs"]["b"].items():
        assert all((value is None) == (metric not in asked) for value in change.values())
    text = str(found)
    assert "n=10 samples, 1 picture;" in " ".join(text.split())
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert rows["false_yes_rate"] == rows["balanced_accuracy"] == rows["mcc"] == ["-"] * 5
    scored = pope_metrics(only_yes[0])
    assert scored["false_yes_rate"] is None
    assert scored["mean"]["false_yes_rate"] is None
    made = la_report([first, second])
    assert " nan" not in made.text("md")
    assert "nan," not in made.text("csv")


def test_a_picture_without_a_kind_of_question_does_not_spoil_the_interval(pair):
    lines = [[line for i, line in enumerate(run) if line["label"] == "yes" or i < 3] for run in pair]
    change = compare([run_of("a", lines[0]), run_of("b", lines[1])]).runs["b"].metrics["false_yes_rate"]
    assert change.low <= change.difference <= change.high
    assert 0 < change.p <= 1


def warned(first, second, made=None, scoring=None):
    return " ".join(
        compare([run_of("a", first, made, scoring), run_of("b", second, made, scoring)]).runs["b"].warnings
    )


def test_length_recall_and_empty_answers_are_watched(pair):
    assert warned(pair[0], pair[0]) == ""
    longer = [{**line, "n_new_tokens": 3} for line in pair[0]]
    assert "50 % longer" in warned(pair[0], longer)
    assert warned(pair[0], [{**line, "n_new_tokens": 2 + (i < 20)} for i, line in enumerate(pair[0])]) == ""
    empty = [{**line, "raw_text": "" if i < 30 else line["raw_text"]} for i, line in enumerate(pair[0])]
    assert "12 % of the answers are empty" in warned(pair[0], empty)
    always_no = [{**line, "raw_text": "No"} for line in pair[0]]
    assert "recall fell" in warned(pair[0], always_no)
    made, scoring = settings("chair"), {"mode": "strict"}
    captions = chair_lines(["A dog and a bench on the grass in the sun today."] * 9, ["dog", "bench"])
    shorter = chair_lines(["A dog on the grass."] * 9, ["dog", "bench"])
    text = warned(captions, shorter, made, scoring)
    assert "shorter" in text
    assert "recall fell by 50 %" in text


def test_changes_that_gather_in_few_pictures_are_told():
    lines = pope_lines([True] * 100, pictures=20)
    worse = [
        {**x, "raw_text": "No" if x["label"] == "yes" else "Yes"} if x["image"] in ("0.jpg", "1.jpg") else x
        for x in lines
    ]
    assert "gather in few pictures" in warned(lines, worse)


def test_tables_fit_80_columns(pair, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    runs = [run_of("baseline", pair[0]), run_of("a-long-name-of-a-run/vhr", pair[1]), run_of("c", pair[0])]
    text = str(compare(runs))
    assert max(map(len, text.splitlines())) <= 80
    for needed in ("at most 16 tokens", "n=240 samples", "40 pictures", "Holm", "cannot be told from chance"):
        assert needed in " ".join(text.split())


def test_seeds_are_resampled_and_averaged(tmp_path, pair):
    generator = np.random.default_rng(0)
    made = settings(generation={**GENERATION, "decode": "sample", "temperature": 1.0}, seed=0)
    for name, right in (("a", 0.8), ("b", 0.9)):
        for seed in range(3):
            lines = pope_lines(answers(generator, right=right).tolist(), 40)
            write_run(tmp_path / name / f"seed-{seed}", lines, {**made, "seed": seed})
    found = la.compare([tmp_path / "a", tmp_path / "b"]).runs["b"]
    change = found.metrics["accuracy"]
    assert change.difference == pytest.approx(0.1, abs=0.03)
    assert 0 < change.low < change.difference < change.high
    assert change.p < 0.01
    write_run(tmp_path / "mixed" / "seed-0", pair[0], made)
    write_run(tmp_path / "mixed" / "seed-1", pair[0], {**made, "interventions": ["var"]})
    with pytest.raises(LvlmAttnError, match=r"differs from .* in interventions"):
        la.compare([tmp_path / "a", tmp_path / "mixed"])


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(LvlmAttnError, match="does not exist"):
        la.compare([tmp_path / "no", tmp_path / "no"])
    with pytest.raises(LvlmAttnError, match=r"no config\.json"):
        la.compare([tmp_path, tmp_path])
    begun = write_run(tmp_path / "begun", [])
    with pytest.raises(LvlmAttnError, match="has no answers; run its evaluation to the end"):
        la.compare([begun, begun])


def test_a_run_that_was_stopped_in_the_middle_of_an_answer_says_what_to_do(tmp_path):
    """A finished run in which a line is broken was damaged by something else, and the line is named."""
    folder = write_run(tmp_path / "run", pope_lines([True, False]))
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"sample_id": "random:2", "raw_te')
    with pytest.raises(LvlmAttnError, match="run the same command again"):
        read_run(folder)
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(LvlmAttnError, match="line 3: not valid JSON"):
        read_run(folder)
