"""A run without a model, in a process of its own: `python -m tests.evals.core.echo_run FOLDER [SECONDS]`.

Every answer depends on all prompts of its batch, so that a run that asks other batches after a crash is found out.
Ranks come from the environment, as in a real run.
"""

import sys
import time
from hashlib import sha256

from PIL import Image

from lvlm_attn.evals.core.benchmark import Sample
from lvlm_attn.evals.core.ranks import Ranks
from lvlm_attn.evals.core.run_folder import RunFolder
from lvlm_attn.evals.core.runner import Answer, run

COUNT, BATCH = 200, 8


class Echo:
    def __init__(self, seconds):
        self.seconds = seconds

    def answer(self, images, prompts, seeds):
        time.sleep(self.seconds)
        beside = sha256("|".join(prompts).encode()).hexdigest()[:8]
        return [Answer(f"{prompt} {seed} {beside}", n_new_tokens=3) for prompt, seed in zip(prompts, seeds)]


def samples():
    image = Image.new("RGB", (4, 4))
    # Every third question is asked twice, under another id.
    return [
        Sample(
            f"s{i}", image, f"{i // 6}.png", f"question {'x' * (i % 7)} {i - (i % 3 == 1)}", {"label": "yes"}
        )
        for i in range(COUNT)
    ]


def main(path, seconds=0.0):
    with RunFolder(path, {"who": "echo"}, ranks=Ranks.of_environment()) as folder:
        lines = run(samples(), Echo(float(seconds)), folder, batch_size=BATCH)
        if folder.ranks.is_first:
            folder.write_metrics({"n": len(lines), "sum": sum(len(line["raw_text"]) for line in lines)})
    folder.ranks.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
