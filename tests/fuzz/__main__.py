"""`python -m tests.fuzz --steps 2000 --seeds 1 2 3`."""

import argparse
import time

from tests.fuzz.steps import Fuzz

parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
parser.add_argument("--steps", type=int, default=2000)
parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
chosen = parser.parse_args()
for seed in chosen.seeds:
    began, fuzz = time.monotonic(), Fuzz(seed)
    for done in range(0, chosen.steps, 50):
        for _ in range(min(50, chosen.steps - done)):
            fuzz.step()
        print(f"seed {seed}: {min(done + 50, chosen.steps)} steps", flush=True)
    fuzz.run(0)
    print(
        f"seed {seed}: {chosen.steps} steps held, of them {fuzz.interrupts} interrupted, {fuzz.refusals} refused, "
        f"{fuzz.errors} with an error of the user's; {time.monotonic() - began:.0f} s"
    )
