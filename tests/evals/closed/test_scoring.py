"""Answers of other tools, in the forms they are written in, and runs of our own."""

import csv
import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.closed.scoring import score_files
from tests.evals.closed import copies
from tests.evals.runs import write_run


def load(name, folder):
    return ClosedBenchmark.from_folder(CLOSED[name], folder)


def score(benchmark, path, **options):
    done = score_files(benchmark.spec, [path], benchmark, **options)
    (result,) = done.results.values()
    return result


def write(path, rows, as_lines=False):
    path.write_text("\n".join(map(json.dumps, rows)) if as_lines else json.dumps(rows))
    return path


@pytest.fixture
def mme(tmp_path):
    return load("mme", copies.mme(tmp_path / "mme", tasks=("existence", "count"), pictures=2))


def test_amber_answers_by_id_with_those_of_the_other_part_beside_them(tmp_path):
    benchmark = load("amber-d", copies.amber(tmp_path))
    rows = [{"id": i, "response": "No"} for i in range(1, 10)]
    result = score(benchmark, write(tmp_path / "a.json", rows))
    assert (result["n"], result["unasked"], result["recall"]) == (7, 2, 1.0)
    with pytest.raises(LvlmAttnError, match="1 of 7 questions have no answer"):
        score(benchmark, write(tmp_path / "b.json", rows[2:-1]))
    assert score(benchmark, tmp_path / "b.json", partial=True)["n"] == 6


def test_mme_tool_folders(tmp_path, mme):
    folder = tmp_path / "results"
    folder.mkdir()
    for task in ("existence", "count"):
        rows = [
            f"{i:04d}.jpg\tIs there a {thing}{i} of {task}? Please answer yes or no.\t{gold}\t{gold}"
            for i in (0, 1)
            for thing, gold in (("cup", "Yes"), ("cow", "No"))
        ]
        if task == "count":
            rows[0] = rows[0].removesuffix("Yes") + "No"
        (folder / f"{task}.txt").write_text("\n".join(rows) + "\n")
    result = score(mme, folder)
    assert (result["existence_points"], result["count_points"]) == (200, 75 + 50)
    (folder / "count.txt").write_text("0000.jpg\tIs there?\tYes\n")
    with pytest.raises(LvlmAttnError, match=r"count\.txt, line 1: expected picture, question"):
        score(mme, folder)


def test_lmms_eval_logs(tmp_path, mme):
    rows = [
        {
            "doc_id": i,
            "doc": {"question_id": f"{item.part}/{item.image.split('/')[1]}.png", "question": item.text,
                    "answer": item.label.capitalize(), "category": item.part},
            "filtered_resps": ["Yes"], "resps": [["Yes"]], "target": item.label,
        }
        for i, item in enumerate(reversed(mme.questions))
    ]  # fmt: skip
    result = score(mme, write(tmp_path / "a.jsonl", rows, as_lines=True))
    assert (result["accuracy"], result["accuracy_plus"], result["yes_ratio"]) == (0.5, 0, 1)


def test_vlmevalkit_tables(tmp_path, mme):
    path = tmp_path / "a.tsv"
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("index", "category", "question", "answer", "image_path", "prediction"))
        for i, item in enumerate(mme.questions):
            table.writerow(
                (i, item.part, item.text, item.label, f"{item.image}.png", item.label.capitalize())
            )
    result = score(mme, path)
    assert (result["accuracy"], result["accuracy_plus"]) == (1, 1)


def test_hallusionbench_result_files(tmp_path):
    benchmark = load("hallusionbench", copies.hallusionbench(tmp_path))
    rows = json.loads((tmp_path / "HallusionBench.json").read_text())
    for row in rows:
        row["model_prediction"] = "Yes." if row["gt_answer"] == "1" else "No."
    result = score(benchmark, write(tmp_path / "a.json", rows))
    assert (result["aAcc"], result["fAcc"], result["qAcc"], result["unasked"]) == (1, 1, 1, 1)


def test_dash_b_answers_by_picture_and_question(tmp_path):
    benchmark = load("dash-b", copies.dash_b(tmp_path))
    rows = [
        {"img_id": item.image, "prompt": item.text, "gt": item.label, "response": "No, I cannot."}
        for item in benchmark.questions
    ]
    assert score(benchmark, write(tmp_path / "a.json", rows))["tnr"] == 1


def test_mmvp_answer_files(tmp_path):
    benchmark = load("mmvp", copies.mmvp(tmp_path))
    rows = [
        {"question_id": int(item.question_id), "prompt": item.text, "answer": "(a)", "response": "(a)"}
        for item in benchmark.questions
    ]
    result = score(benchmark, write(tmp_path / "a.jsonl", rows, as_lines=True))
    assert (result["accuracy"], result["accuracy_pair"]) == (0.5, 0)


def test_runs_of_our_own_need_no_copy(tmp_path, mme):
    lines = [
        {"sample_id": item.sample_id, "image": item.image, **mme.fields()[item.sample_id], "raw_text": "Yes"}
        for item in mme.questions
    ]
    folder = write_run(tmp_path / "run", lines, scoring=mme.scoring())
    for path in (folder, folder / "samples.jsonl"):
        done = score_files(CLOSED["mme"], [path], None).results
        assert done["run"]["existence_points"] == 50
    assert score(mme, folder)["existence_points"] == 50
    with pytest.raises(LvlmAttnError, match=r"does not tell the right answers; pass --data FOLDER"):
        score_files(CLOSED["mme"], [write(tmp_path / "x.json", [{"id": 1, "text": "Yes"}])], None)


def test_answers_to_other_questions_are_refused(tmp_path, mme):
    rows = [
        {"question_id": item.sample_id, "question": "Is it Monday?", "text": "Yes"} for item in mme.questions
    ]
    with pytest.raises(LvlmAttnError, match="nothing in it tells"):
        score(mme, write(tmp_path / "a.json", rows))
    amber = load("amber-d", copies.amber(tmp_path / "amber"))
    rows = [{"id": i, "question": "Is it Monday?", "response": "Yes"} for i in range(3, 10)]
    with pytest.raises(LvlmAttnError, match=r"'Is it Monday\?' where question 3 asks"):
        score(amber, write(tmp_path / "b.json", rows))


def test_two_answers_to_one_question_are_refused(tmp_path, mme):
    amber = load("amber-d", copies.amber(tmp_path / "amber"))
    rows = [{"id": i, "response": "Yes"} for i in (3, 3, 4, 5, 6, 7, 8, 9)]
    with pytest.raises(LvlmAttnError, match="gives question id 3 2 times"):
        score(amber, write(tmp_path / "a.json", rows))
    rows = [{"image": item.image, "question": item.text, "text": "Yes"} for item in mme.questions]
    with pytest.raises(LvlmAttnError, match="twice; keep one"):
        score(mme, write(tmp_path / "b.json", [*rows, rows[0]]))
