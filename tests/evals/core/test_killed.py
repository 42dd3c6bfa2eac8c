"""Runs that are killed at any moment, that share a folder, or whose disk is full."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.core.runner import run
from tests.evals.core.echo_run import BATCH, COUNT, Echo, main, samples

ROOT = Path(__file__).parents[3]


def start(path, seconds=0.0, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.evals.core.echo_run", str(path), str(seconds)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_ranks(path, count, seconds=0.0):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return [
        start(path, seconds, RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for rank in range(count)
    ]


def finish(processes):
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err


def result(path):
    """Metrics to the byte, and lines by id without timings."""
    lines = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("latency_s", None)
    lines.sort(key=lambda line: line["sample_id"])
    return (path / "metrics.json").read_bytes(), [json.dumps(line) for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    main(path)
    metrics, lines = result(path)
    assert len(lines) == COUNT
    return metrics, lines


def kill_when(processes, path, least, delay):
    """Kills all once `least` lines are on disk and a moment has passed."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit and all(process.poll() is None for process in processes):
        if sum(len(part.read_bytes().splitlines()) for part in path.glob("samples*.jsonl")) >= least:
            break
        time.sleep(0.002)
    time.sleep(delay)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def test_killed_at_random_moments(tmp_path, whole):
    chance = random.Random(3)
    for attempt in range(8):
        path = tmp_path / str(attempt)
        for _ in range(2):
            kill_when([start(path, 0.003)], path, chance.randrange(0, COUNT), chance.random() * 0.01)
        finish([start(path)])
        assert result(path) == whole
        assert [json.loads(x)["sample_id"] for x in (path / "samples.jsonl").read_text().splitlines()] == [
            f"s{i}" for i in range(COUNT)
        ]


@pytest.mark.slow
def test_two_ranks_killed_at_random_moments(tmp_path, whole):
    chance = random.Random(4)
    for attempt in range(3):
        path = tmp_path / str(attempt)
        kill_when(start_ranks(path, 2, 0.01), path, chance.randrange(1, COUNT), chance.random() * 0.02)
        # What two ranks began, two, three or one finish.
        finish(start_ranks(path, (2, 3, 1)[attempt]))
        assert result(path) == whole
        assert not list(path.glob("samples.rank*"))


@pytest.mark.slow
def test_a_lost_rank_is_made_up_on_resume(tmp_path, whole):
    path = tmp_path / "run"
    first, second = start_ranks(path, 2, 0.02)
    kill_when([second], path, 20, 0.0)
    _, err = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "lost contact" in err
    finish(start_ranks(path, 2))
    assert result(path) == whole


@pytest.mark.parametrize("keep", range(0, 400, 37))
def test_cut_off_anywhere(tmp_path, whole, keep):
    main(tmp_path)
    (tmp_path / "metrics.json").unlink()
    data = (tmp_path / "samples.jsonl").read_bytes()
    (tmp_path / "samples.jsonl").write_bytes(data[: len(data) * keep // 400])
    main(tmp_path)
    assert result(tmp_path) == whole


KILLS_ITSELF = """
import os, signal, sys
from lvlm_attn.evals.core.run_folder import RunFolder

with RunFolder(sys.argv[1], {"who": "echo"}) as folder:
    folder.append([{"sample_id": "a", "raw_text": "x"}, {"sample_id": "b", "raw_text": "y"}])
    folder.append([{"sample_id": "c", "raw_text": "z"}])
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_appended_is_on_disk_when_the_process_is_killed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS_ITSELF, str(tmp_path)], cwd=ROOT, timeout=120)
    assert done.returncode == -signal.SIGKILL
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample_id"] for line in lines] == ["a", "b", "c"]


def test_a_second_process_is_refused(tmp_path):
    process = start(tmp_path, 0.2)
    kill_after = time.monotonic() + 60
    while not (tmp_path / "samples.jsonl").exists() and time.monotonic() < kill_after:
        time.sleep(0.01)
    other = start(tmp_path)
    _, err = other.communicate(timeout=60)
    assert other.returncode != 0
    assert "another process is writing" in err
    process.kill()
    process.communicate()
    finish([start(tmp_path)])


def test_ranks_without_a_process_group_are_refused(tmp_path):
    process = start(tmp_path, RANK="1", WORLD_SIZE="2", MASTER_ADDR="", MASTER_PORT="")
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "rank 1 of 2" in err
    assert "no process group" in err
    assert not list(tmp_path.iterdir())


def run_until_the_disk_is_full(path):
    with RunFolder(path, {"who": "echo"}) as folder:
        write = folder.append

        def append(lines, is_written=True):
            if len(folder.lines) >= 5 * BATCH:
                folder._file.close()
                folder._file = Path("/dev/full").open("w")  # noqa: SIM115
            write(lines, is_written)

        folder.append = append
        run(samples(), Echo(0), folder, BATCH)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path, whole):
    with pytest.raises(LvlmAttnError, match=r"No space left on device.*run the same command again") as raised:
        run_until_the_disk_is_full(tmp_path)
    assert "\n" not in str(raised.value)
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) >= 5 * BATCH
    main(tmp_path)
    assert result(tmp_path) == whole


def test_a_file_that_cannot_be_replaced_is_one_sentence(tmp_path):
    with RunFolder(tmp_path, {"who": "echo"}) as folder:
        (tmp_path / "metrics.json").mkdir()
        with pytest.raises(LvlmAttnError, match=r"metrics\.json could not be written"):
            folder.write_metrics({})
