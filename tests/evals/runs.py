"""Run folders and runs made by hand, for the tests of what reads them."""

import json
from pathlib import Path

import numpy as np

from lvlm_attn.evals.core.finished import Run

GENERATION = {
    "decode": "greedy",
    "temperature": None,
    "max_new_tokens": 16,
    "suffix": "",
    "prompt_template": "T",
}


def settings(name="pope", **changes):
    found = {
        "benchmark": {"name": name, "data": "made up"},
        "model": {"id": "toy", "dtype": "float32", "attention": "sdpa", "weights": "w"},
        "interventions": [],
        "generation": GENERATION,
        "seed": None,
        "batch_size": 8,
        "lvlm_attn": "0",
    }
    return {**found, **changes}


def pope_lines(answers, pictures=20, category="random"):
    """Lines of yes/no answers, labels yes and no in turn, spread over pictures."""
    lines = []
    for i, answer in enumerate(answers):
        label = "no" if i % 2 else "yes"
        text = answer if isinstance(answer, str) else label if answer else {"yes": "no", "no": "yes"}[label]
        lines.append(
            {
                "sample_id": f"{category}:{i}",
                "image": f"{i % pictures}.jpg",
                "question_id": i,
                "category": category,
                "label": label,
                "question": f"Is there a thing{i} in the image?",
                "raw_text": text.capitalize(),
                "n_new_tokens": 2,
            }
        )
    return lines


def chair_lines(captions, objects=("dog",)):
    return [
        {
            "sample_id": str(i),
            "image": f"{i}.jpg",
            "objects": list(objects),
            "question": "Please describe this image in detail.",
            "raw_text": text,
            "n_new_tokens": len(text.split()),
        }
        for i, text in enumerate(captions)
    ]


def write_run(folder, lines, made=None, scoring=None, metrics=None):
    folder = Path(folder)
    folder.mkdir(parents=True)
    config = {"settings": made or settings(), "scoring": scoring or {"parser": "strict"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def run_of(name, lines, made=None, scoring=None):
    seeds = lines if lines and isinstance(lines[0], list) else [lines]
    return Run(
        name,
        Path(name),
        made or settings(),
        scoring or {"parser": "strict"},
        {},
        {},
        tuple(map(tuple, seeds)),
    )


def answers(generator, pictures=40, each=6, right=0.85, spread=0.0):
    """Right and wrong answers; with `spread`, pictures differ in how hard they are."""
    easy = np.clip(right + spread * generator.standard_normal(pictures), 0, 1)
    return generator.random(pictures * each) < np.tile(easy, each)
