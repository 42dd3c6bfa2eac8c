"""`eval NAME` and `eval score NAME` on small copies, with the untrained toy."""

import json

import pytest

from tests.cli.test_cli import call
from tests.evals.closed import copies
from tests.evals.conftest import untrained  # noqa: F401

COPIES = {
    "amber-d": copies.amber,
    "mme": copies.mme,
    "mmvp": copies.mmvp,
    "hallusionbench": copies.hallusionbench,
    "naturalbench": copies.naturalbench,
    "dash-b": copies.dash_b,
}
COUNTS = {"amber-d": 7, "mme": 12, "mmvp": 4, "hallusionbench": 5, "naturalbench": 8, "dash-b": 4}


@pytest.mark.parametrize("name", COPIES)
def test_a_run_scores_as_its_samples_do(capsys, untrained, tmp_path, name):  # noqa: F811
    COPIES[name](tmp_path / "copy")
    code, out, err = call(
        capsys, "eval", name, "--model", untrained, "--data", tmp_path / "copy", "--intervene", "vhr",
        "--max-new-tokens", 2, "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    assert (made["n"], made["failed"]) == (COUNTS[name], 0)
    for more in ([], ["--data", tmp_path / "copy"]):
        code, out, err = call(capsys, "eval", "score", name, "--answers", tmp_path / "run", *more, "--json")
        assert code == 0, err
        again = json.loads(out)
        assert {key: value for key, value in again.items() if key != "unasked"} == {
            key: value for key, value in made.items() if key != "run_folder"
        }


def test_amber_descriptions(capsys, untrained, tmp_path):  # noqa: F811
    copies.amber(tmp_path / "copy")
    run = ["eval", "amber-g", "--model", untrained, "--data", tmp_path / "copy", "--max-new-tokens", 3]
    code, out, err = call(capsys, *run, "--intervene", "vhr", "--out", tmp_path / "run", "--json")
    assert code == 0, err
    made = json.loads(out)
    assert (made["n"], made["failed"]) == (2, 0)
    assert "its similarity step is left out" in err
    for more in ([], ["--data", tmp_path / "copy"]):
        code, out, err = call(
            capsys, "eval", "score", "amber-g", "--answers", tmp_path / "run", *more, "--json"
        )
        assert code == 0, err
        assert {**made, **json.loads(out), "unasked": 0} == {**made, "unasked": 0}
    code, out, _ = call(capsys, "eval", "score", "amber-g", "--answers", tmp_path / "run")
    assert (code, "CHAIR" in out) == (0, True)


def test_tables_fit_a_terminal(capsys, untrained, tmp_path):  # noqa: F811
    from lvlm_attn.evals.closed.mme import COGNITION, PERCEPTION

    copies.mme(tmp_path / "copy", tasks=(*PERCEPTION, *COGNITION), pictures=1)
    run = ["eval", "mme", "--model", untrained, "--data", tmp_path / "copy", "--max-new-tokens", 2]
    code, out, _ = call(capsys, *run, "--out", tmp_path / "a")
    assert code == 0
    assert "perception" in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    code, _, err = call(capsys, *run, "--intervene", "var", "--out", tmp_path / "b")
    assert code == 0, err
    code, out, _ = call(capsys, "eval", "compare", tmp_path / "a", tmp_path / "b", "--json")
    assert (code, json.loads(out)["reference"]) == (0, "a")
    assert {"accuracy", "accuracy_plus", "perception", "cognition"} <= json.loads(out)["runs"]["b"].keys()


def test_mistakes_are_one_sentence(capsys, tmp_path):
    code, _, err = call(capsys, "eval", "mme", "--model", "toy", "--data", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    assert "MME folder" in err
    code, _, err = call(capsys, "eval", "score", "mme", "--answers", tmp_path / "none")
    assert (code, err.count("\n")) == (2, 1)
    copies.mme(tmp_path / "copy")
    code, _, err = call(
        capsys, "eval", "mme", "--model", "toy", "--data", tmp_path / "copy", "--images", tmp_path / "away"
    )
    assert (code, "image folder" in err) == (2, True)


def test_the_hub_that_cannot_be_reached_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, err = call(capsys, "eval", "mmvp", "--model", "toy", "--data", "nobody/nothing-at-all")
    assert (code, err.count("\n")) == (2, 1)
    assert "could not be had from the hub" in err


def test_a_data_set_of_the_hub_is_fetched(monkeypatch, tmp_path):
    from lvlm_attn.evals.core.hub import local_copy

    asked = []

    def fetch(name, repo_type):
        asked.append((name, repo_type))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert local_copy("BaiqiL/NaturalBench", "NaturalBench") == tmp_path
    assert asked == [("BaiqiL/NaturalBench", "dataset")]
    assert local_copy(tmp_path, "NaturalBench") == tmp_path
