"""lmms-eval's own command line with the model `lvlm_attn`, against this project's runner, sample by sample."""

import json
import os
import socket
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("lmms_eval") is None or find_spec("datasets") is None,
        reason="lmms-eval is not installed; see docs/lmms_eval.md for the two commands that install it",
    ),
]
ROOT = Path(__file__).resolve().parents[2]
COUNT, BATCH = 12, 4
# With settings that change answers of the toy, where the usual ones hardly do.
VAR = "var:tau=1.0,rho=0.0,mass_floor=0.0,removed_fraction=1.0,sink_dims=[0,1,2,3],require_visual_sink=false"
VHR = "vhr:alpha=20.0"
TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
task: toy_pope
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: !function utils.doc_to_text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
process_results: !function utils.process_results
metric_list:
  - metric: right
    aggregation: !function utils.mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def pope():
    from lvlm_attn.toy.benchmarks import toy_pope

    return toy_pope("dev", 6, limit=COUNT // 3)


@pytest.fixture(scope="module")
def task(pope, tmp_path_factory):
    """A folder with the task, its data as parquet with pictures in it, and our entry point as pip would install it."""
    from datasets import Dataset, Features, Image, Value

    place = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question_id": sample.sample_id, "question": sample.prompt, "answer": sample.fields["label"],
         "image": sample.image}
        for sample in pope.samples()
    ]  # fmt: skip
    text = Value("string")
    features = Features({"question_id": text, "question": text, "answer": text, "image": Image()})
    Dataset.from_list(rows, features=features).to_parquet(place / "data.parquet")
    (place / "toy_pope.yaml").write_text(TASK.format(data=place / "data.parquet"))
    (place / "utils.py").write_text((Path(__file__).parent / "lmms_task.py").read_text())
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][
        "lmms_eval.models"
    ]
    info = place / "installed" / "lvlm_attn-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lvlm-attn\nVersion: 0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[lmms_eval.models]\n{lines}")
    return place


def lmms_eval(task, out, model_args, *more, launcher=()):
    """Runs the command line and returns its answers by question id, and what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{task / 'installed'}{os.pathsep}{ROOT}",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(task / "hub"),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable, *launcher, "-m", "lmms_eval", "--model", "lvlm_attn", "--model_args", model_args,
        "--tasks", "toy_pope", "--include_path", str(task), "--batch_size", str(BATCH), "--device", "cpu",
        "--output_path", str(out), "--log_samples", *more,
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, cwd=task, capture_output=True, text=True, check=False)
    logs = list(Path(out).rglob("*samples_toy_pope.jsonl"))
    rows = [json.loads(line) for path in logs for line in path.read_text().splitlines()]
    return {row["right"]["question_id"]: row["filtered_resps"] for row in rows}, done.stdout + done.stderr


def ours(pope, methods, out):
    from lvlm_attn.evals.core.answerer import Decoding
    from lvlm_attn.evals.core.evaluate import evaluate
    from lvlm_attn.hooks.parsing import parse
    from lvlm_attn.loading import load

    model, processor = load("toy", device="cpu")
    done = evaluate(
        model, processor, pope, parse(methods) if methods else (), out=out, decoding=Decoding(max_new_tokens=8),
        batch_size=BATCH, on_note=lambda text: None,
    )  # fmt: skip
    # lmms-eval strips blanks around what it logs
    return {line["sample_id"]: line["raw_text"].strip() for line in done.lines}


def text(resps):
    while isinstance(resps, list):
        (resps,) = resps
    return resps


@pytest.mark.parametrize(
    ("methods", "more"),
    [("", ()), (VAR, ()), ("vcd", ("--force_simple",))],
    ids=["bare", "var", "vcd-simple"],
)
def test_answers_are_those_of_our_own_runner(pope, task, tmp_path, methods, more):
    model_args = "pretrained=toy" + (f',intervene="{methods}"' if methods else "")
    answers, printed = lmms_eval(task, tmp_path / "theirs", model_args, *more)
    assert len(answers) == COUNT, printed[-3000:]
    expected = ours(pope, methods, tmp_path / "ours")
    assert {name: text(resps) for name, resps in answers.items()} == expected
    if methods == VAR:
        assert expected != ours(pope, "", tmp_path / "bare")


def test_the_response_cache_does_not_mix_runs(pope, task, tmp_path):
    cache = ("--use_cache", str(tmp_path / "cache"))
    lmms_eval(task, tmp_path / "a", "pretrained=toy", *cache)
    answers, printed = lmms_eval(task, tmp_path / "b", f"pretrained=toy,intervene={VHR}", *cache)
    assert len(answers) == COUNT, printed[-3000:]
    expected = ours(pope, VHR, tmp_path / "ours")
    assert {name: text(resps) for name, resps in answers.items()} == expected
    assert expected != ours(pope, "", tmp_path / "bare")


def test_two_processes_share_the_samples(pope, task, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    answers, printed = lmms_eval(task, tmp_path / "theirs", "pretrained=toy", launcher=launcher)
    assert len(answers) == COUNT, printed[-3000:]
    assert {name: text(resps) for name, resps in answers.items()} == ours(pope, "", tmp_path / "ours")


def test_mistakes_are_said_and_leave_no_answers(task, tmp_path):
    answers, printed = lmms_eval(task, tmp_path / "a", "pretrained=toy,intervene=varr")
    assert not answers
    assert "Did you mean 'var'?" in printed
    answers, printed = lmms_eval(task, tmp_path / "b", "pretrained=toy,intervene=var:rho=0.5,tau=2")
    assert not answers
    assert "put quotes around the whole of intervene" in printed
