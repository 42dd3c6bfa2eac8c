"""The command line as a user meets it: one process per start-up check, `main` in this process for the rest."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from lvlm_attn._version import __version__
from lvlm_attn.cli.main import main

QUESTIONS = [
    {"question_id": 1, "image": "a.png", "text": "Is there a dog in the image?", "label": "yes"},
    {"question_id": 2, "image": "a.png", "text": "Is there a cat in the image?", "label": "no"},
]


def call(capsys, *arguments):
    """Runs `main` and returns exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stopped:
        main([str(item) for item in arguments])
    printed = capsys.readouterr()
    code = stopped.value.code
    return (0 if code is None else code), printed.out, printed.err


def refused(capsys, *arguments):
    """The message of a command that must fail with one sentence and without a traceback."""
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.fixture
def files(tmp_path):
    """Questions, answers and one picture."""
    (tmp_path / "q.json").write_text("\n".join(map(json.dumps, QUESTIONS)))
    answers = [{"question_id": 1, "text": "Yes"}, {"question_id": 2, "text": "perhaps"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, answers)))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["eval", "--help"], ["eval", "pope", "--help"]]
)
def test_help_and_version_import_neither_torch_nor_transformers(arguments):
    code = (
        "import sys\nfrom lvlm_attn.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_version(capsys):
    assert call(capsys, "--version")[:2] == (0, f"lvlm-attn {__version__}\n")


def test_score_pope_prints_one_json_object(capsys, files):
    code, out, _ = call(
        capsys,
        "eval",
        "score",
        "pope",
        "--answers",
        files / "a.jsonl",
        "--questions",
        files / "q.json",
        "--json",
    )
    result = json.loads(out)
    assert code == 0
    assert (result["accuracy"], result["precision"], result["recall"], result["unknown"]) == (
        0.5,
        1.0,
        1.0,
        1,
    )
    assert {"f1", "yes_ratio", "tp", "fp", "tn", "fn", "n"} <= set(result)


def test_score_pope_in_plain_lines_shows_unknown_answers(capsys, files):
    code, out, _ = call(
        capsys, "eval", "score", "pope", "--answers", files / "a.jsonl", "--questions", files / "q.json"
    )
    assert code == 0
    assert "50.00" in out
    assert "1 answer holds neither yes nor no" in out
    assert "\x1b[" not in out


def test_score_published_answers(capsys, shared_data):
    pope = shared_data / "pope"
    code, out, _ = call(
        capsys, "eval", "score", "pope", "--json",
        "--answers", pope / "cd_rethink_outputs/llava-7b-coco-random-greedy.jsonl",
        "--questions", pope / "DAMO_VCD/coco/coco_pope_random.json",
    )  # fmt: skip
    result = json.loads(out)
    assert code == 0
    assert [round(result[key], 4) for key in ("accuracy", "precision", "recall", "f1", "yes_ratio")] == [
        0.87, 0.9664, 0.7667, 0.855, 0.3967,
    ]  # fmt: skip


def test_score_chair(capsys, tmp_path):
    (tmp_path / "c.jsonl").write_text('{"image_id": 1, "caption": "A dog and a cat."}')
    (tmp_path / "g.jsonl").write_text('{"image_id": 1, "objects": ["dog", "bed", "unicorn"]}')
    arguments = [
        "eval",
        "score",
        "chair",
        "--answers",
        tmp_path / "c.jsonl",
        "--ground-truth",
        tmp_path / "g.jsonl",
    ]
    code, out, err = call(capsys, *arguments, "--json")
    result = json.loads(out)
    assert (code, result["chair_s"], result["chair_i"], result["recall"]) == (0, 1.0, 0.5, 0.5)
    assert "unicorn" in err
    assert "Most hallucinated: cat 1" in call(capsys, *arguments)[1]


def test_pope_build(capsys, tmp_path):
    rows = [{"image": f"{i}.jpg", "objects": ["dog", "cat", f"thing{i}"]} for i in range(5)]
    (tmp_path / "o.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ["pope", "build", "--objects", tmp_path / "o.jsonl", "--k", 1, "--images", 3, "--seed", 4]
    assert call(capsys, *arguments, "--out", tmp_path / "a")[0] == 0
    assert call(capsys, *arguments, "--out", tmp_path / "b")[0] == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "o_pope_adversarial.json",
        "o_pope_build.json",
        "o_pope_popular.json",
        "o_pope_random.json",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len((tmp_path / "a/o_pope_random.json").read_text().splitlines()) == 6


def test_bad_scoring_input(capsys, files):
    score = ["eval", "score", "pope", "--answers", files / "a.jsonl", "--questions"]
    assert "none.json does not exist" in refused(capsys, *score, files / "none.json")
    assert "Did you mean 'official'" in refused(capsys, *score, files / "q.json", "--parser", "oficial")
    (files / "broken.json").write_text(json.dumps(QUESTIONS[0]) + "\n{oops\n")
    assert "broken.json, line 2: not valid JSON" in refused(capsys, *score, files / "broken.json")
    (files / "short.jsonl").write_text('{"question_id": 1, "text": "Yes"}')
    missing = ["eval", "score", "pope", "--answers", files / "short.jsonl", "--questions", files / "q.json"]
    assert "1 of 2 questions have no answer" in refused(capsys, *missing)
    assert call(capsys, *missing, "--partial")[0] == 0


def test_bad_input_is_found_before_a_model_is_loaded(capsys, files, monkeypatch):
    monkeypatch.setattr("lvlm_attn.cli.evaluate.load_model", lambda *_: pytest.fail("loaded too early"))
    pope = ["eval", "pope", "--model", "toy"]
    own = [*pope, "--questions", files / "q.json", "--images", files]
    assert "Did you mean 'vhr'" in refused(capsys, *own, "--intervene", "vrh")
    assert "Did you mean 'rho'" in refused(capsys, *own, "--intervene", "var:roh=0.5")
    assert "Did you mean 'greedy'" in refused(capsys, *own, "--decode", "greddy")
    assert "is a file" in refused(capsys, *own, "--out", files / "q.json")
    assert "POPE needs --questions" in refused(capsys, *pope)
    assert "leave out --images" in refused(capsys, *pope, "--data", "toy", "--images", files)
    assert "no bundled data 'toi'" in refused(capsys, *pope, "--data", "toi")
    assert "has no split 'tset'" in refused(capsys, *pope, "--data", "toy", "--split", "tset")
    assert "does not exist" in refused(
        capsys, *pope, "--questions", files / "q.json", "--images", files / "no"
    )
    (files / "empty").mkdir()
    assert "none of the 1 pictures" in refused(
        capsys, *pope, "--questions", files / "q.json", "--images", files / "empty"
    )
    assert "CHAIR needs" in refused(capsys, "eval", "chair", "--model", "toy")
    assert "no CHAIR mode 'wordent'" in refused(
        capsys, "eval", "chair", "--model", "toy", "--data", "toy", "--mode", "wordent"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_unwritable_folder(capsys, files):
    files.chmod(0o500)
    own = ["eval", "pope", "--model", "toy", "--questions", files / "q.json", "--images", files]
    message = refused(capsys, *own, "--out", files / "runs")
    files.chmod(0o700)
    assert "cannot be written" in message


def test_generate_refuses_a_truncated_image_and_a_bad_dtype(capsys, files):
    whole = (files / "a.png").read_bytes()
    (files / "cut.png").write_bytes(whole[:40])
    ask = ["generate", "--model", "toy", "--prompt", "Is there a dog in the image?", "--image"]
    assert "cut.png cannot be read" in refused(capsys, *ask, files / "cut.png")
    assert "missing.png does not exist" in refused(capsys, *ask, files / "missing.png")
    assert "Did you mean 'float32'" in refused(capsys, *ask, files / "a.png", "--dtype", "float23")
    assert "device 'gpuu' cannot be used" in refused(capsys, *ask, files / "a.png", "--device", "gpuu")


def test_missing_options_are_usage_errors(capsys):
    code, _, err = call(capsys, "generate", "--model", "toy", "--prompt", "x")
    assert code == 2
    assert "--image" in err


def test_debug_shows_the_traceback(files):
    from lvlm_attn.errors import LvlmAttnError

    with pytest.raises(LvlmAttnError):
        main(["eval", "score", "pope", "--answers", "no", "--questions", str(files / "q.json"), "--debug"])


def test_listings(capsys):
    code, out, _ = call(capsys, "methods")
    assert code == 0
    assert "var:rho=0.5" in out
    assert {"var", "vhr"} <= {item["name"] for item in json.loads(call(capsys, "methods", "--json")[1])}
    assert "llava_next" in call(capsys, "models")[1]
    found = json.loads(call(capsys, "doctor", "--json")[1])
    assert found["backends"]["sdpa"] == found["backends"]["eager"] == "works"
    assert {"packages", "device", "extras", "lmms-eval", "toy"} <= set(found)
