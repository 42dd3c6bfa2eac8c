"""Several seeds: run folders for each, means and spreads, tables and refusals."""

import json
from statistics import mean, stdev

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.compare import compare
from lvlm_attn.evals.core.answerer import Decoding, ModelAnswerer
from lvlm_attn.evals.core.evaluate import evaluate
from lvlm_attn.evals.core.runner import RunInterrupted
from lvlm_attn.evals.core.tables import plain
from lvlm_attn.evals.reporting import report
from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

SAMPLE = Decoding("sample", 4)


@pytest.fixture(scope="module")
def sampled(loaded, tmp_path_factory):
    out = tmp_path_factory.mktemp("seeds") / "run"
    return evaluate(*loaded, toy_pope("dev", 4), out=out, decoding=SAMPLE, seed=5, seeds=3)


def test_metrics_are_means_over_the_seeds(sampled):
    single = [json.loads((sampled.folder / f"seed-{seed}/metrics.json").read_text()) for seed in (5, 6, 7)]
    assert json.loads((sampled.folder / "metrics.json").read_text()) == sampled.metrics
    for key in ("accuracy", "f1", "yes_ratio"):
        values = [item[key] for item in single]
        assert sampled.metrics[key] == pytest.approx(mean(values))
        assert sampled.metrics["spread"][key] == pytest.approx(stdev(values))
        by_split = [item["per_category"]["popular"][key] for item in single]
        assert sampled.metrics["per_category"]["popular"][key] == pytest.approx(mean(by_split))
        assert sampled.metrics["spread"]["per_category"]["popular"][key] == pytest.approx(stdev(by_split))
    assert (sampled.metrics["seeds"], sampled.metrics["n"]) == (3, single[0]["n"])
    assert len(sampled.lines) == 3 * single[0]["n"]


def test_seeds_are_those_of_single_runs(sampled, loaded, tmp_path):
    alone = evaluate(*loaded, toy_pope("dev", 4), out=tmp_path, decoding=SAMPLE, seed=6)
    count = len(alone.lines)
    told = [line["raw_text"] for line in sampled.lines[count : 2 * count]]
    assert told == [line["raw_text"] for line in alone.lines]
    assert told != [line["raw_text"] for line in sampled.lines[:count]]


def test_tables_show_mean_and_spread(sampled, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    made = report([sampled.folder])
    (table,) = made.sections[0].tables()
    assert "over 3 seeds" in table.title
    assert {row[1] for row in table.rows} >= {"random", "popular", "adversarial", "mean"}
    assert all("±" in row[2] for row in table.rows)
    assert max(map(len, plain(table, 80).splitlines())) <= 80
    assert (
        compare([sampled.folder, sampled.folder]).runs[f"{sampled.folder.name} (2)"].metrics["accuracy"].p
        == 1
    )


def test_the_same_call_goes_on_where_several_seeds_stopped(sampled, loaded, tmp_path, monkeypatch):
    answer, calls = ModelAnswerer.answer_prepared, []

    def stopping(self, *arguments):
        calls.append(arguments)
        if len(calls) == 9:  # in the second run
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(ModelAnswerer, "answer_prepared", stopping)
    with pytest.raises(RunInterrupted, match="run the same command again to go on") as stopped:
        evaluate(*loaded, toy_pope("dev", 4), out=tmp_path, decoding=SAMPLE, seed=5, seeds=3)
    assert "--out" not in str(stopped.value)
    assert (tmp_path / "seed-6").is_dir()
    assert not (tmp_path / "metrics.json").exists()
    done = evaluate(*loaded, toy_pope("dev", 4), out=tmp_path, decoding=SAMPLE, seed=5, seeds=3)
    assert done.metrics == sampled.metrics


def test_captions_of_several_seeds(loaded, tmp_path):
    done = evaluate(*loaded, toy_chair("dev", 4), out=tmp_path, decoding=SAMPLE, seeds=2)
    assert {"chair_s", "chair_i", "len"} <= set(done.metrics["spread"])
    (table,) = report([tmp_path]).sections[0].tables()
    assert "±" in table.rows[0][6]


def test_what_seeds_do_not_fit_is_refused(sampled, loaded, tmp_path):
    with pytest.raises(LvlmAttnError, match="same answers; sample"):
        evaluate(*loaded, toy_pope("dev", 4), out=tmp_path, seeds=2)
    with pytest.raises(LvlmAttnError, match="at least 1"):
        evaluate(*loaded, toy_pope("dev", 4), out=tmp_path, seeds=0)
    with pytest.raises(LvlmAttnError, match="holds a single run"):
        evaluate(*loaded, toy_pope("dev", 4), out=sampled.folder / "seed-5", decoding=SAMPLE, seeds=2)
    assert not list(tmp_path.iterdir())
