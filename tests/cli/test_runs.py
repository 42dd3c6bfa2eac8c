"""Commands that run a model: the untrained toy, on its own scenes and on files."""

import json

from PIL import Image

from lvlm_attn.evals.core.runner import RunInterrupted
from tests.cli.test_cli import QUESTIONS, call
from tests.evals.conftest import untrained  # noqa: F401


def test_eval_pope_on_toy_scenes(capsys, untrained, tmp_path):  # noqa: F811
    common = [
        "eval",
        "pope",
        "--model",
        untrained,
        "--data",
        "toy",
        "--split",
        "dev",
        "--scenes",
        6,
        "--limit",
        4,
    ]
    code, out, err = call(
        capsys, *common, "--intervene", "var", "--intervene", "vhr", "--out", tmp_path / "r", "--json"
    )
    assert code == 0, err
    result = json.loads(out)
    assert (result["n"], result["failed"]) == (12, 0)
    settings = json.loads((tmp_path / "r/config.json").read_text())["settings"]
    assert settings["interventions"] == ["var", "vhr"]
    code, _, err = call(capsys, *common, "--out", tmp_path / "r")
    assert (code, "holds a run with other settings" in err) == (2, True)


def test_a_run_keeps_the_limit_it_was_last_run_with(capsys, untrained, tmp_path):  # noqa: F811
    common = ["eval", "pope", "--data", "toy", "--split", "dev", "--scenes", 6, "--model", untrained]
    kept = []
    for limit in (["--limit", 1], ["--limit", 2], []):
        code, _, err = call(capsys, *common, *limit, "--out", tmp_path / "r")
        assert code == 0, err
        kept.append(json.loads((tmp_path / "r/config.json").read_text()))
    assert [config.pop("limit", None) for config in kept] == [1, 2, None]
    assert kept[0] == kept[1] == kept[2]
    assert call(capsys, *common, "--limit", 2, "--out", tmp_path / "s")[0] == 0
    code, out, err = call(capsys, "eval", "compare", tmp_path / "r", tmp_path / "s")
    assert code == 0, err
    assert "r was run with no --limit and s with --limit 2" in " ".join((out + err).split())


def test_too_few_scenes_for_pope_ask_for_more(capsys):
    code, _, err = call(
        capsys, "eval", "pope", "--model", "toy", "--data", "toy", "--split", "dev", "--scenes", 2
    )
    assert code == 2
    assert "POPE needs more than the first 2 scenes of the toy's dev split" in err
    assert "--scenes" in err
    assert "smaller k" not in err
    for command in ("pope", "sweep"):
        code, out, _ = call(capsys, "eval", command, "--help")
        assert "fewer than 3 kinds" in " ".join(out.replace("│", " ").split())


def test_a_folder_is_one_model_however_it_is_spelt(capsys, untrained, tmp_path):  # noqa: F811
    common = ["eval", "pope", "--data", "toy", "--split", "dev", "--scenes", 6, "--limit", 1]
    for spelt in (untrained, f"{untrained}/", f"{untrained}/../{untrained.name}/."):
        code, _, err = call(capsys, *common, "--model", spelt, "--out", tmp_path / "r")
        assert code == 0, err


def test_scores_of_a_run_are_those_of_its_samples(capsys, untrained, tmp_path):  # noqa: F811
    (tmp_path / "images").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "images/a.png")
    (tmp_path / "q_random.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    code, out, err = call(
        capsys, "eval", "pope", "--model", untrained, "--questions", tmp_path / "q_random.json",
        "--images", tmp_path / "images", "--out", tmp_path / "run", "--decode", "sample", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    code, out, _ = call(
        capsys, "eval", "score", "pope", "--answers", tmp_path / "run/samples.jsonl",
        "--questions", tmp_path / "q_random.json", "--json",
    )  # fmt: skip
    scored = json.loads(out)
    assert all(made[key] == scored[key] for key in ("accuracy", "precision", "recall", "unknown", "n"))
    score = ["eval", "score", "pope", "--questions", tmp_path / "q_random.json", "--answers"]
    _, out, _ = call(capsys, *score, tmp_path / "run/samples.jsonl")
    assert "sampled at temperature 1, at most 16 tokens" in " ".join(out.split())
    (tmp_path / "copy.jsonl").write_text((tmp_path / "run/samples.jsonl").read_text())
    _, out, _ = call(capsys, *score, tmp_path / "copy.jsonl")
    assert "token limit not known" in " ".join(out.split())


def test_a_corrupt_picture_fails_alone_and_is_told(capsys, untrained, tmp_path):  # noqa: F811
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    rows = [*QUESTIONS, {**QUESTIONS[0], "question_id": 3, "image": "b.png"}]
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, rows)))
    run = ["eval", "pope", "--model", untrained, "--questions", tmp_path / "q.json", "--images", tmp_path]
    code, out, err = call(capsys, *run, "--out", tmp_path / "run", "--json")
    assert code == 1
    assert (json.loads(out)["n"], json.loads(out)["failed"]) == (2, 1)
    assert "1 of 3 samples failed" in err
    assert "b.png cannot be read" in err
    _, out, _ = call(capsys, *run, "--out", tmp_path / "run")
    assert ", n=2 (1 of 3 failed)" in " ".join(out.split())
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "b.png")
    code, out, _ = call(capsys, *run, "--out", tmp_path / "run", "--json")
    assert (code, json.loads(out)["n"]) == (0, 3)


def test_eval_chair_on_files(capsys, untrained, tmp_path):  # noqa: F811
    for number in (1, 2, 3):
        Image.new("RGB", (30, 30), (number * 40, 0, 0)).save(tmp_path / f"COCO_val2014_{number:012d}.jpg")
    rows = [{"image_id": number, "objects": ["dog"]} for number in (1, 2, 3)]
    (tmp_path / "gt.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "ids.txt").write_text("000000000003.jpg\n1\n")
    code, out, err = call(
        capsys, "eval", "chair", "--model", untrained, "--ground-truth", tmp_path / "gt.jsonl", "--images", tmp_path,
        "--ids", tmp_path / "ids.txt", "--max-new-tokens", 5, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["n"] == 2
    lines = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    assert [line["sample_id"] for line in lines] == ["3", "1"]


def test_ctrl_c_tells_how_to_go_on(capsys, untrained, tmp_path, monkeypatch):  # noqa: F811
    def stop(*_, **__):
        raise RunInterrupted("stopped with 3 of 9 samples")

    monkeypatch.setattr("lvlm_attn.evals.core.evaluate.run", stop)
    code, _, err = call(
        capsys,
        "eval",
        "chair",
        "--model",
        untrained,
        "--data",
        "toy",
        "--scenes",
        3,
        "--out",
        tmp_path / "run",
    )
    assert code == 130
    assert "stopped with 3 of 9 samples" in err


def test_generate_and_sinks(capsys, untrained, tmp_path):  # noqa: F811
    Image.new("RGB", (60, 40), "green").save(tmp_path / "a.png")
    ask = [
        "generate",
        "--model",
        untrained,
        "--image",
        tmp_path / "a.png",
        "--prompt",
        "Describe this image.",
    ]
    code, out, err = call(capsys, *ask, "--intervene", "vhr", "--max-new-tokens", 4, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["interventions"] == ["vhr"]
    assert 1 <= result["n_new_tokens"] <= 4
    assert result["report"]["interventions"]
    code, out, err = call(capsys, *ask, "--intervene", "vhr", "--max-new-tokens", 4, "--report")
    assert (code, out.strip()) == (0, result["text"].strip())
    assert "vhr" in err
    code, out, _ = call(capsys, "sinks", "--model", untrained, "--json")
    assert code == 0
    assert json.loads(out)["dims"]


def test_demo_prints_tables_and_writes_them(capsys, untrained, tmp_path):  # noqa: F811
    code, out, err = call(
        capsys, "demo", "--model", untrained, "--limit", 8, "--split", "dev", "--out", tmp_path / "demo"
    )
    assert code == 0, err
    text = (tmp_path / "demo/table.md").read_text()
    for heading in ("**POPE (%)", "**CHAIR (%)", "VAR+VHR"):
        assert heading in text
    assert "CHAIR_s" in out


def test_an_unknown_model_is_one_sentence(capsys, tmp_path):
    code, _, err = call(capsys, "sinks", "--model", tmp_path / "nothing")
    assert code == 2
    assert err.startswith("error: ")
    assert "nothing" in err
