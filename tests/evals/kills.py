"""Evaluations of the toy, killed at random moments and run again: `python -m tests.evals.kills --kills 30 --ranks 10`.

Every attempt gets a folder of its own, is killed with SIGKILL once as many answers are on disk as chance says, is run
again by the same command, and must then hold the same `metrics.json` and, sorted by id and without timings, the same
`samples.jsonl`, byte for byte, as a run that nobody disturbed. Attempts with ranks start two processes with torchrun,
and kill the launcher, one of the ranks, or all.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
COUNT = 200


def command(out, model="toy"):
    """So many yes/no questions, a third of them about each of the three kinds of objects, with an intervention on."""
    return [
        "-m", "lvlm_attn", "eval", "pope", "--model", str(model), "--data", "toy", "--scenes", "40",
        "--limit", str(COUNT // 3 + 1), "--intervene", "vhr", "--batch-size", "8", "--out", str(out), "--json",
    ]  # fmt: skip


def start(out, ranks=1, model="toy"):
    head = LAUNCHER if ranks > 1 else []
    # torchrun -m takes the module's name.
    tail = command(out, model)
    return subprocess.Popen(
        [sys.executable, *head, *tail],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=600):
    _, err = process.communicate(timeout=seconds)
    if process.returncode:
        raise AssertionError(f"exit code {process.returncode}: {err[-2000:]}")


def result(out):
    """Metrics to the byte, and lines by id without timings."""
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("latency_s", None)
    return (out / "metrics.json").read_bytes(), sorted(map(json.dumps, lines))


def answers_on_disk(out):
    try:
        return sum(path.read_bytes().count(b"\n") for path in out.glob("samples*.jsonl"))
    except OSError:  # a file that is merged away just now
        return 0


def children(process):
    """The processes that a launcher started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == process.pid:
            found.append(int(folder.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(process, chance, ranks):
    """SIGKILL to the process; with ranks to the launcher, to one rank, or to the whole group."""
    victim = chance.choice(["launcher", "rank", "all"]) if ranks > 1 else "launcher"
    ranked = children(process) if ranks > 1 else []
    if victim == "rank" and ranked:
        os.kill(chance.choice(ranked), signal.SIGKILL)
    elif victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    limit = time.monotonic() + 60
    while any(map(is_alive, ranked)) and time.monotonic() < limit:
        time.sleep(0.05)
    return victim


def attempt(out, chance, ranks, model="toy"):
    """One kill; tells what was killed when, and how much was on disk."""
    process = start(out, ranks, model)
    target = chance.randrange(-20, COUNT)  # below 0: while the model is loaded
    limit = time.monotonic() + 300
    early = chance.random() * 6 if target < 0 else 0
    while process.poll() is None and time.monotonic() < limit:
        if target < 0:
            time.sleep(early)
            break
        if answers_on_disk(out) >= target:
            time.sleep(chance.random() * 0.05)
            break
        time.sleep(0.002)
    is_over = process.poll() is not None
    victim = kill(process, chance, ranks)
    found = answers_on_disk(out)
    finish(start(out, chance.choice([1, ranks]), model))
    return f"killed {'too late' if is_over else victim}, {found} answers on disk"


def main(kills, ranks, seed=0, folder=None, model="toy"):
    """Kills so many runs, so many of them with two ranks; raises at the first difference."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as own:
        place = Path(folder or own)
        whole = place / "whole"
        finish(start(whole, model=model))
        wanted = result(whole)
        assert len(wanted[1]) >= COUNT
        for i in range(kills):
            out, count = place / f"kill-{i}", 2 if i < ranks else 1
            told = attempt(out, chance, count, model)
            same = result(out) == wanted and not list(out.glob("samples.rank*"))
            print(
                f"{i + 1:3d} of {kills}, {count} rank{'s' * (count > 1)}: {told}: {'same' if same else 'DIFFERENT'}"
            )
            assert same, out
    return kills


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=10, help="how many of them with two ranks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keeps the runs")
    given = parser.parse_args()
    print(f"{main(given.kills, given.ranks, given.seed, given.folder)} kills: the same files every time.")
