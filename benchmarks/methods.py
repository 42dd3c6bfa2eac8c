"""Every method on the toy: settings chosen on dev scenes, reported on test scenes, gains held against controls.

    python -m benchmarks.methods dev [--scenes 60]     # writes lvlm_attn/toy/methods.json
    python -m benchmarks.methods test [--scenes 500] [--rest 500]   # writes docs/results.md between its markers

The methods of ``MAIN`` run on ``--scenes`` test scenes, all others on ``--rest``.

Runs that are finished in the folder are not run again, so that several processes may share the work: ``--only pai vcd``
runs some methods and writes nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

OUT = Path("lvlm-runs/methods")
BARE = "bare model"
MAIN = ("identity", "VAR", "VHR", "VAR+VHR", "PAI", "PAI, attention only", "PAINT", "VCD", "ICD", "DoLa")
RULE = "accuracy on POPE plus F1 of the objects in captions"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("dev", "test"))
    parser.add_argument("--scenes", type=int)
    parser.add_argument("--rest", type=int, default=500)
    parser.add_argument("--only", nargs="+", help="names as on the command line, such as vcd")
    parser.add_argument(
        "--finished", action="store_true", help="test: write what is finished, and name what is not"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument(
        "--controls", nargs="+", help="test: only run the controls of these methods, by their title"
    )
    options = parser.parse_args()
    count = options.scenes or (60 if options.part == "dev" else 500)

    from lvlm_attn.toy.methods import CHOSEN, GRID, IDENTITY, chosen

    if options.part == "dev":
        points = {
            f"{name} {number}": text
            for name, texts in GRID.items()
            if len(texts) > 1
            for number, text in enumerate(texts)
        }
        done = run(points, "dev", count, options)
        if not options.only:
            CHOSEN.write_text(json.dumps(choose(points, done, count), indent=2) + "\n")
        return
    for name in options.controls or ():
        from benchmarks.method_page import controls

        controls(name, chosen()[name], count, options.out / f"test-{count}")
    if options.controls:
        return
    from benchmarks.method_page import Group, write

    known = {"identity": IDENTITY, **chosen()}
    groups = []
    for size, is_main in ((count, True), (options.rest, False)):
        folder = options.out / f"test-{size}"
        methods = {
            name: text
            for name, text in known.items()
            if (name in MAIN) == is_main and (not options.finished or is_finished(folder, name))
        }
        done = run(methods, "test", size, options)
        groups.append(Group(done, methods, size, folder))
    if not options.only:
        ran = {name for group in groups for name in group.methods}
        write(groups, [name for name in known if name not in ran], options.finished)


def is_finished(folder: Path, name: str) -> bool:
    """Whether both runs of a method are complete."""
    return all((folder / part / name.lower() / "metrics.json").is_file() for part in ("pope", "chair"))


def run(methods: dict[str, str], split: str, count: int, options: Any) -> Any:
    """Runs methods, written as on the command line, on POPE and CHAIR."""
    import lvlm_attn as la
    from lvlm_attn.evals.study import study
    from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

    kept = {
        name: text
        for name, text in methods.items()
        if not options.only or text.partition(":")[0] in options.only
    }
    model, processor = la.load("toy")
    return study(
        {name: la.parse(text) for name, text in {BARE: "none", **kept}.items()},
        toy_pope(split, count),
        toy_chair(split, count),
        "toy",
        model,
        processor,
        options.out / f"{split}-{count}",
        batch_size=32,
        on_done=lambda benchmark, name, taken: print(f"{benchmark:<6}{name:<34}{taken:7.1f} s", flush=True),
    )


def choose(points: dict[str, str], done: Any, count: int) -> dict[str, Any]:
    """The best setting of each method on dev scenes; of equals the first."""
    found: dict[str, Any] = {}
    rows = []
    for label, text in points.items():
        name = label.rpartition(" ")[0]
        accuracy, caption = done.pope[label].metrics["mean"]["accuracy"], done.chair[label].metrics
        score = accuracy + caption["f1"]
        rows.append(
            {
                "method": name,
                "setting": text,
                "accuracy": accuracy,
                "chair_i": caption["chair_i"],
                "recall": caption["recall"],
                "score": score,
            }
        )
        if name not in found or score > found[name][0]:
            found[name] = (score, text)
    return {
        "scenes": count,
        "rule": RULE,
        "chosen": {name: text for name, (_, text) in found.items()},
        "tried": rows,
    }


if __name__ == "__main__":
    main()
