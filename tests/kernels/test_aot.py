"""The kernels compile for GPUs that are not there, fit their shared memory, and do not spill where it matters."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.fuzzing import IS_FULL
from tests.kernels import aot

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compile_for(tmp_path_factory):
    """Compiles the cases of a chip in a process without the interpreter, whose switch is set in this one."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))

    def compiled(chip):
        command = [sys.executable, "-W", "ignore", "-m", "tests.kernels.aot", chip]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines()]

    return compiled


@pytest.mark.slow
@pytest.mark.skipif(not IS_FULL, reason="make aot compiles every configuration for every chip")
@pytest.mark.parametrize("chip", list(aot.CASES))
def test_kernels_compile_and_fit(compile_for, chip):
    lines = compile_for(chip)
    assert {(line["head_dim"], line["bits"], line["what"]) for line in lines} == set(aot.CASES[chip])
    names = {line["kernel"] for line in lines}
    assert names >= {
        "_attend_all",
        "_list_blocks",
        "_split_keys",
        "_join_splits",
        "_list_keys",
        "_correct",
        "_write_weights",
    }
    assert aot.misfits(lines) == []
    if chip == "sm_90":
        assert len([line for line in lines if line["head_dim"] in (64, 128)]) >= 10


def run_without_a_gpu(tmp_path, *command):
    """What a module prints with a driver that runs nothing, which needs a process of its own."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", *command]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_decoding_step_launches_two_kernels_per_layer(tmp_path):
    sizes = ("--layers", "2", "--tokens", "2", "--repeats", "1")
    told = run_without_a_gpu(tmp_path, "benchmarks.host_time", *sizes)
    assert "launches per acting layer and step: 2.0" in told


@pytest.mark.slow
def test_what_is_launched_as_before_is_what_would_be_looked_up(tmp_path):
    """Over the ends of blocks of keys, where the number of parts changes."""
    assert run_without_a_gpu(tmp_path, "tests.kernels.launches").split() == ["var", "360", "pai", "360"]


def test_a_kernel_that_does_not_fit_is_found():
    fits = {"chip": "sm_90", "head_dim": 64, "shared": 100, "stack": 0, "local": 0}
    lines = [fits, fits | {"shared": 10**6}, fits | {"stack": 8}, fits | {"stack": 8, "head_dim": 96}]
    assert aot.misfits(lines) == lines[1:3]
