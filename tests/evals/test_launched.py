"""`accelerate launch -m lvlm_attn eval` and torchrun with two processes over gloo: what one process gives."""

import json
import os
import subprocess
import sys

import pytest

from lvlm_attn.cli.main import main
from tests.evals.kills import ROOT, result
from tests.fuzzing import IS_FULL

LAUNCHERS = {
    # Without --multi_gpu accelerate starts a single process on a machine that has neither GPUs nor mpirun.
    "accelerate": [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}  # fmt: skip


def command(model, out, *more):
    return [
        "eval", "pope", "--model", str(model), "--data", "toy", "--split", "dev", "--scenes", "12",
        "--intervene", "vhr", "--batch-size", "4", "--out", str(out), "--json", *more,
    ]  # fmt: skip


def launched(launcher, arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, *LAUNCHERS[launcher], "-m", "lvlm_attn", *arguments],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
# torchrun is tried on every day by what follows.
@pytest.mark.parametrize("launcher", LAUNCHERS if IS_FULL else ["accelerate"])
def test_two_processes_give_what_one_gives(untrained, tmp_path, launcher):
    if launcher == "accelerate":
        pytest.importorskip("accelerate")
    with pytest.raises(SystemExit):
        main(command(untrained, tmp_path / "one"))
    done = launched(launcher, command(untrained, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert result(tmp_path / "two") == result(tmp_path / "one")
    printed = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(printed) == 1
    assert json.loads(printed[0])["n"] == len(result(tmp_path / "one")[1])
    assert json.loads((tmp_path / "two/env.json").read_text())["ranks"] == 2
    assert done.stderr.count("Model ") == 1


@pytest.mark.slow
def test_two_processes_make_up_seeds_and_controls(untrained, tmp_path):
    more = ["--decode", "sample", "--seeds", "2", "--controls", "--limit", "6", "--max-new-tokens", "2"]
    with pytest.raises(SystemExit):
        main(command(untrained, tmp_path / "one", *more))
    done = launched("torchrun", command(untrained, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    for name in ("metrics.json", "controls.json", "controls/prefer-yes/seed-1/metrics.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
