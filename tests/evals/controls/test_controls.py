"""Whether a gain survives its controls: on runs made by hand, and on a model."""

import json

import numpy as np
import pytest

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.controls.controls import read_controls
from lvlm_attn.evals.controls.found import Controls
from lvlm_attn.evals.controls.judge import Judge
from lvlm_attn.evals.core.answerer import Decoding
from lvlm_attn.evals.reporting import report
from lvlm_attn.toy.benchmarks import toy_chair, toy_pope
from tests.evals.runs import chair_lines, pope_lines, run_of, settings

COUNT = 600


def model_that_leans_towards_no(skill, threshold, seed=0):
    """Answers by noisy log odds: how well they order questions is `skill`, when it says yes the threshold."""
    generator = np.random.default_rng(seed)
    lines = pope_lines([True] * COUNT, pictures=100)
    for line, noise in zip(lines, generator.standard_normal(COUNT)):
        odds = skill * (1 if line["label"] == "yes" else -1) + noise
        yes = 1 / (1 + np.exp(-odds))
        line["first_token"] = {"yes": yes, "no": 1 - yes}
        line["raw_text"] = "Yes" if odds > threshold else "No"
    return lines


def judged(bare, method, others=None):
    runs = {"bare": run_of("bare", bare), "identity": run_of("identity", bare)}
    runs["prefer-yes"] = run_of("prefer-yes", (others or {}).get("prefer-yes", bare))
    return Judge(run_of("method", method), runs, 400).found("vcd", True, 0.1)


def row(found, name):
    return next(item for item in found.rows if item.name == name)


def test_a_method_that_only_says_yes_more_often_does_not_survive():
    bare, method = model_that_leans_towards_no(1.2, 1.5), model_that_leans_towards_no(1.2, 0.0)
    found = judged(bare, method)
    assert found.is_gain
    assert row(found, "yes-logit shift").change.difference == pytest.approx(0, abs=0.005)
    assert not found.survives
    assert "does not survive" in found.verdict()
    assert "threshold moved" in found.verdict()
    assert found.details["AUROC of the bare model"] == pytest.approx(found.details["of the method"])


def test_a_method_that_knows_more_survives():
    bare, method = model_that_leans_towards_no(0.8, 0.6), model_that_leans_towards_no(2.0, 0.0, seed=1)
    found = judged(bare, method)
    assert found.survives
    assert "survives every control: identity, prefer-yes and yes-logit shift" in found.verdict()
    assert found.details["of the method"] > found.details["AUROC of the bare model"] + 0.05
    assert [cells[-1] for cells in found.table().rows] == ["yes", "yes", "yes", "nothing to run"]


def test_a_request_to_prefer_yes_can_do_as_well():
    bare, method = model_that_leans_towards_no(0.8, 0.6), model_that_leans_towards_no(2.0, 0.0, seed=1)
    found = judged(bare, method, {"prefer-yes": method})
    assert not found.survives
    assert "Whenever possible, please select Yes." in found.verdict()


def test_where_nothing_is_gained_nothing_is_explained():
    bare = model_that_leans_towards_no(1.2, 0.0)
    assert "no gain beyond chance" in judged(bare, bare).verdict()
    worse = judged(model_that_leans_towards_no(2.0, 0.0), model_that_leans_towards_no(0.5, 0.0))
    assert not worse.is_gain
    assert not worse.survives


def test_shorter_captions_do_not_survive_equal_length():
    made, scoring = settings("chair"), {"mode": "strict"}
    long, short = "A dog and a bench with a cat.", "A dog and a bench."
    bare = run_of("bare", chair_lines([long] * 40, ["dog", "bench"]), made, scoring)
    method = run_of("method", chair_lines([short] * 40, ["dog", "bench"]), made, scoring)
    found = Judge(method, {"bare": bare, "identity": bare}, 400).found("vhr", False, 0.1)
    assert found.is_gain
    assert found.lower_is_better
    assert row(found, "identity").survives
    assert row(found, "equal length").change.difference == 0
    assert "cut to equal length" in found.verdict()


def test_what_was_found_can_be_written_and_read():
    found = judged(model_that_leans_towards_no(1.2, 1.5), model_that_leans_towards_no(1.2, 0.0))
    assert Controls.of_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_controls_of_a_sampled_run(loaded, tmp_path):
    done, found = la.evaluate_with_controls(
        *loaded,
        toy_pope("dev", 4),
        la.VCD(beta=0.5),
        out=tmp_path / "run",
        decoding=Decoding("sample", 4),
        seeds=2,
    )
    assert {path.name for path in (tmp_path / "run/controls").iterdir()} == {
        "bare", "identity", "prefer-yes", "plausible"
    }  # fmt: skip
    settings_of = {
        name: json.loads((tmp_path / f"run/controls/{name}/seed-0/config.json").read_text())["settings"]
        for name in ("bare", "identity", "prefer-yes", "plausible")
    }
    assert settings_of["plausible"]["generation"]["plausibility"] == 0.5
    assert settings_of["prefer-yes"]["generation"]["suffix"].endswith("select Yes.")
    assert settings_of["identity"]["interventions"] == ["identity(vcd:beta=0.5)"]
    assert [item.name for item in found.rows] == ["identity", "prefer-yes", "yes-logit shift", "plausible"]
    assert read_controls(tmp_path / "run") == found
    text = report([tmp_path / "run/controls/bare", tmp_path / "run"]).text("md")
    assert found.verdict() in text
    assert "gain survives" in text
    again, same = la.evaluate_with_controls(
        *loaded,
        toy_pope("dev", 4),
        la.VCD(beta=0.5),
        out=tmp_path / "run",
        decoding=Decoding("sample", 4),
        seeds=2,
    )
    assert (again.metrics, same) == (done.metrics, found)


def test_controls_of_captions(loaded, tmp_path):
    _, found = la.evaluate_with_controls(
        *loaded, toy_chair("dev", 4), [la.VHR()], out=tmp_path, decoding=Decoding(max_new_tokens=8)
    )
    assert [item.name for item in found.rows] == ["identity", "equal length", "plausible"]
    assert "greedy decoding" in row(found, "plausible").remark
    assert "word for word" in row(found, "identity").remark


def test_controls_need_a_method(loaded, tmp_path):
    with pytest.raises(LvlmAttnError, match="--intervene"):
        la.evaluate_with_controls(*loaded, toy_pope("dev", 4), (), out=tmp_path)
    (tmp_path / "controls.json").write_text('{"rows": []}')
    with pytest.raises(LvlmAttnError, match="damaged"):
        read_controls(tmp_path)
