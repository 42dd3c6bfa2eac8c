"""Sweeps over copies of benchmarks other than POPE and CHAIR: parted by pictures, pairs and sets whole."""

import json

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.closed.benchmark import ClosedBenchmark
from lvlm_attn.evals.closed.catalogue import CLOSED
from lvlm_attn.evals.sweep.parts import PicturePart
from tests.cli.test_cli import call, refused
from tests.evals.closed import copies

MORE = {
    "mme": lambda folder: copies.mme(folder, pictures=6),
    "mmvp": lambda folder: copies.mmvp(folder, answers=("(a)", "(b)") * 8),
    "naturalbench": lambda folder: copies.naturalbench(folder, groups=8),
}


@pytest.mark.parametrize("name", MORE)
def test_parts_hold_whole_groups_and_score_alone(tmp_path, name):
    whole = ClosedBenchmark.from_folder(CLOSED[name], MORE[name](tmp_path))
    parts = [PicturePart(whole, part, 0.5) for part in ("dev", "test")]
    listed = [{sample.sample_id for sample in part.samples()} for part in parts]
    assert all(listed)
    assert not listed[0] & listed[1]
    assert sorted(listed[0] | listed[1]) == sorted(sample.sample_id for sample in whole.samples())
    clusters = [{sample.fields["cluster"] for sample in part.samples()} for part in parts]
    assert not clusters[0] & clusters[1]
    counts = {"n": 0, **dict.fromkeys(CLOSED[name].kinds, 0)}
    for part in parts:
        lines = [
            {"sample_id": sample.sample_id, "image": sample.image_name, **sample.fields,
             "raw_text": sample.fields["label"]}
            for sample in part.samples()
        ]  # fmt: skip
        found = part.score(lines)
        assert found["accuracy"] == 1.0
        assert (found["n"], found["failed"]) == (len(lines), 0)
        assert part.scoring()["parts"] == list(found["per_category"])
        counts = {"n": counts["n"] + len(lines)} | {
            kind: counts[kind] + found["groups"][kind] for kind in CLOSED[name].kinds
        }
        assert part.describe()["questions"] == len(lines)
        assert part.asks_letters == any("options" in line for line in lines)
    every = [{**sample.fields, "sample_id": sample.sample_id, "raw_text": ""} for sample in whole.samples()]
    assert counts == {"n": len(every), **whole.score(every)["groups"]}


def test_a_sub_task_of_which_nothing_is_in_a_part_is_none_of_it(tmp_path):
    """Its points would be nothing, and the sum of all sub-tasks with them."""
    copies.mme(tmp_path, tasks=("existence",), pictures=6)
    copies.mme(tmp_path, tasks=("count",), pictures=1)
    whole = ClosedBenchmark.from_folder(CLOSED["mme"], tmp_path)
    scorings = [PicturePart(whole, part, 0.5).scoring()["parts"] for part in ("dev", "test")]
    assert sorted(scorings) == [["existence"], ["existence", "count"]]


def test_the_command(capsys, untrained, tmp_path):
    MORE["mmvp"](tmp_path / "copy")
    code, out, err = call(
        capsys, "eval", "sweep", "--benchmark", "mmvp", "--model", untrained, "--data", tmp_path / "copy",
        "--grid", "vhr:alpha=1.5,3.0", "--dev-share", 0.5, "--max-new-tokens", 2, "--by", "accuracy_pair",
        "--out", tmp_path / "sweep", "--json",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)
    assert set(found["points"]) == {"vhr:alpha=1.5", "vhr:alpha=3.0"}
    settings = json.loads((tmp_path / "sweep/sweep.json").read_text())["settings"]
    assert [settings[part]["dev_share"] for part in ("dev", "test")] == [0.5, 0.5]
    for size in ("part_samples", "part_pictures"):
        assert sum(settings[part][size] for part in ("dev", "test")) == 16
    assert f"2 points on dev ({settings['dev']['part_samples']} samples" in err


def test_descriptions_of_amber(capsys, untrained, tmp_path):
    """Its two pictures fall into different parts at some share."""
    from lvlm_attn.evals.benchmarks import load_benchmark
    from lvlm_attn.evals.sweep.parts import place_of

    copies.amber(tmp_path / "copy")
    names = [sample.image_name for sample in load_benchmark("amber-g", tmp_path / "copy").samples()]
    share = sum(map(place_of, names)) / 2
    code, out, err = call(
        capsys, "eval", "sweep", "--benchmark", "amber-g", "--model", untrained, "--data", tmp_path / "copy",
        "--grid", "vhr", "--dev-share", share, "--max-new-tokens", 2, "--out", tmp_path / "sweep", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["by"] == "hal"
    assert (tmp_path / "sweep/test/1-vhr/metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark", "mme"], "mme needs --data FOLDER"),
        (["--benchmark", "mme", "--data", ".", "--questions", "q.jsonl"], "leave out --questions"),
        (["--benchmark", "pope", "--data", "toy", "--subset", "count"], "leave out --subset"),
        (["--benchmark", "amber-g", "--data", ".", "--subset", "count"], "leave out --subset"),
        (["--benchmark", "mmw"], "Did you mean 'mme'"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(capsys, arguments, message):
    err = refused(capsys, "eval", "sweep", "--model", "toy", "--grid", "vhr", *arguments)
    assert message in err


def test_a_folder_that_cannot_be_written_is_said_before_a_model_is_loaded(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    command = ["eval", "sweep", "--model", "no such model", "--grid", "vhr", "--data", "toy", "--scenes", 4]
    code, _, err = call(capsys, *command, "--out", tmp_path / "file" / "sweep")
    assert code == 2
    assert "cannot be written" in err
    assert "no such model" not in err


def test_a_part_without_questions_is_refused(tmp_path):
    whole = ClosedBenchmark.from_folder(CLOSED["mmvp"], copies.mmvp(tmp_path))
    with pytest.raises(LvlmAttnError, match="no picture falls into the dev part"):
        PicturePart(whole, "dev", 1e-9)
