"""Paired comparisons of runs of closed questions."""

import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.compare import compare
from lvlm_attn.evals.page import page
from lvlm_attn.evals.reporting import report
from tests.evals.closed import copies
from tests.evals.runs import settings, write_run


@pytest.fixture
def runs(tmp_path):
    """The bare run answers no throughout; the other one is right but for two questions."""
    benchmark = ClosedBenchmark.from_folder(
        CLOSED["mme"], copies.mme(tmp_path / "mme", tasks=("existence", "count"), pictures=6)
    )
    fields = benchmark.fields()
    made = settings("mme", benchmark=benchmark.describe())

    def write(name, answer):
        lines = [
            {"sample_id": item.sample_id, "image": item.image, **fields[item.sample_id], "question": item.text,
             "raw_text": answer(item), "n_new_tokens": 1}
            for item in benchmark.questions
        ]  # fmt: skip
        metrics = benchmark.score(lines)
        return write_run(tmp_path / name, lines, made, benchmark.scoring(), metrics), metrics

    wrong = ("existence/0000:1", "existence/0001:2")
    swap = {"yes": "No", "no": "Yes"}
    return [
        write("bare", lambda item: "No"),
        write("better", lambda item: swap[item.label] if item.sample_id in wrong else item.label),
    ]


def test_differences_are_those_of_the_metrics(runs):
    (bare, before), (better, after) = runs
    found = compare([bare, better], resamples=300)
    changed = found.runs["better"]
    for name in ("accuracy", "accuracy_plus", "existence_points", "count_points", "yes_ratio"):
        assert changed.metrics[name].difference == pytest.approx(after[name] - before[name]), name
    # 24 questions, 12 right before; after it 22. Right answers gained: 11, lost: 1 (a yes question answered no).
    assert (before["accuracy"], after["accuracy"]) == (0.5, 22 / 24)
    assert (changed.better, changed.worse, changed.pictures) == (11, 1, 12)
    assert changed.metrics["accuracy"].p == pytest.approx(2 * 13 / 2**12)
    # pairs: none before; of existence 4 of 6 after it, of count all
    assert changed.metrics["accuracy_plus"].difference == pytest.approx(10 / 12)
    plus = changed.metrics["accuracy_plus"]
    assert 0 < plus.low < plus.difference <= plus.high <= 1
    assert changed.metrics["count_points"].difference == 150
    assert changed.metrics["count_points"].low == changed.metrics["count_points"].high == 150


def test_a_report_shows_them(runs):
    folders = [folder for folder, _ in runs]
    made = report(folders, resamples=300)
    assert "MME" in made.text("md")
    assert "existence_points (points)" in made.text("md")
    assert "mme" in made.text("csv").lower()
    html = page(made, lambda run, line: None)
    assert "Is there a cup2 of existence?" in html


def test_identical_runs_say_so_and_other_benchmarks_are_refused(runs, tmp_path):
    (bare, _), _ = runs
    other = write_run(tmp_path / "pope", [{"sample_id": "a", "label": "yes", "raw_text": "Yes"}])
    with pytest.raises(LvlmAttnError, match="compare runs of one benchmark"):
        compare([bare, other])
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bare.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert compare([bare, copy], resamples=100).runs["copy"].is_identical


def test_runs_that_name_no_parts_are_refused(runs, tmp_path):
    (bare, _), _ = runs
    lines = (bare / "samples.jsonl").read_text().splitlines()
    old = write_run(tmp_path / "old", list(map(json.loads, lines)), settings("mme"))
    with pytest.raises(LvlmAttnError, match="names no parts"):
        compare([old, bare])
