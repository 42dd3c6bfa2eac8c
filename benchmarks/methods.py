"""Every method at its defaults on the toy: POPE and CHAIR, compared with the bare model.

    python -m benchmarks.methods [--scenes 200] [--only vcd agla] [--out FOLDER] [--save]

Runs that are finished in the folder are not run again. ``--save`` writes the table in ``docs/results.md`` anew, between
its two markers; the prose around it is written by hand.
"""

from __future__ import annotations

import argparse
from pathlib import Path

METHODS = {
    "bare model": "none",
    "identity (AGLA, same view twice)": "agla:alpha=2.0,beta=0.5,matcher=self,control=true",
    "VAR": "var",
    "VHR": "vhr",
    "PAI": "pai",
    "PAI, attention only": "pai:gamma=1.0",
    "PAINT": "paint",
    "VCD": "vcd",
    "ICD": "icd",
    "AGLA (self)": "agla:matcher=self",
    "CARVE": "carve",
    "DoLa": "dola",
    "OPERA": "opera",
    "MMA": "mma",
    "VisualSelf": "visual_self",
    "FrozenVisual": "frozen_visual",
    "Hollow": "hollow",
    "Delayed": "delayed",
    "Neighborhood": "neighborhood",
    "Power": "power",
    "VMTC": "vmtc",
    "CMAI": "cmai",
    "CARVEAttention": "carve_attention",
    "CrossLMM, 9 tokens": "crosslmm:grid=[3,3],w=0.0",
    "CrossLMM, reuse S1": "crosslmm:grid=[3,3],source=S1",
    "CrossLMM, reuse S2": "crosslmm:grid=[3,3],source=S2",
    "CrossLMM, adapter": "crosslmm:weights=toy",
}
"""Name in the table, and the method as it is written on the command line; parameters only where one is required."""

RESULTS = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN, END = "<!-- table: python -m benchmarks.methods -->", "<!-- end of table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--split", default="test", choices=("dev", "test"))
    parser.add_argument("--only", nargs="+", help="names as on the command line, such as vcd")
    parser.add_argument("--out", type=Path, default=Path("lvlm-runs/methods"))
    parser.add_argument("--save", action="store_true", help="write the table into docs/results.md")
    options = parser.parse_args()

    import lvlm_attn as la
    from lvlm_attn.evals.core.report import limits, markdown, show
    from lvlm_attn.evals.study import study
    from lvlm_attn.toy.benchmarks import toy_chair, toy_pope

    chosen = {
        name: text
        for name, text in METHODS.items()
        if not options.only or text == "none" or text.partition(":")[0] in options.only
    }
    model, processor = la.load("toy")
    done = study(
        {name: la.parse(text) for name, text in chosen.items()},
        toy_pope(options.split, options.scenes),
        toy_chair(options.split, options.scenes),
        "toy",
        model,
        processor,
        options.out / f"{options.split}-{options.scenes}",
        on_done=lambda benchmark, name, taken: print(f"{benchmark:<6}{name:<34}{taken:7.1f} s", flush=True),
    )
    questions = next(iter(done.pope.values())).metrics["n"]
    data = f"{options.scenes} {options.split} scenes: {questions} questions and {options.scenes} captions"
    pope, chair = (limits(next(iter(runs.values())).generation) for runs in (done.pope, done.chair))
    title = f"Toy, {data} (%; questions {pope}; captions {chair})"
    table = done.overview(title)
    show(table)
    if options.save:
        written = "\n".join(f"- {name}: `{text}`" for name, text in chosen.items() if text != "none")
        text = RESULTS.read_text()
        before, _, rest = text.partition(BEGIN)
        _, _, after = rest.partition(END)
        body = f"\n{markdown(table)}\nAs written on the command line:\n\n{written}\n\n"
        RESULTS.write_text(before + BEGIN + body + END + after)


if __name__ == "__main__":
    main()
