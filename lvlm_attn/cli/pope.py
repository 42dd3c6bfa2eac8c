"""`lvlm-attn pope build`: POPE questions from lists of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lvlm_attn.cli.common import say

app = typer.Typer(no_args_is_help=True, help="Make POPE questions.")


@app.command("build")
def build(
    objects: Annotated[Path, typer.Option("--objects", help="JSON lines {image, objects}.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the question files.")],
    k: Annotated[
        int, typer.Option("--k", help="Questions about present objects per picture, and as many absent.")
    ] = 3,
    images: Annotated[
        int | None,
        typer.Option("--images", help="How many pictures to draw; all without it.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seeds the draw of pictures and the random split.")] = 0,
    name: Annotated[
        str | None, typer.Option("--name", help="Start of the file names.", show_default=False)
    ] = None,
) -> None:
    """Build the random, popular and adversarial questions of the POPE protocol, with an explicit seed."""
    from lvlm_attn.evals.core.jsonio import read_bytes, write_json, write_text
    from lvlm_attn.evals.core.run_folder import check_writable
    from lvlm_attn.evals.pope.build import build_questions, question_row, read_objects

    built = build_questions(read_objects(objects), k=k, images=images, seed=seed)
    folder = check_writable(out)
    start = name or objects.stem
    from hashlib import sha256

    files = {}
    for split, questions in built.items():
        path = folder / f"{start}_pope_{split}.json"
        write_text(
            path, "".join(json.dumps(question_row(item), ensure_ascii=False) + "\n" for item in questions)
        )
        files[path.name] = {"questions": len(questions), "sha256": sha256(path.read_bytes()).hexdigest()}
        say(f"{path}: {len(questions)} questions")
    source = {"name": objects.name, "sha256": sha256(read_bytes(objects, "object file")).hexdigest()}
    write_json(
        folder / f"{start}_pope_build.json",
        {"objects": source, "k": k, "images": len(built["random"]) // (2 * k), "seed": seed, "files": files},
    )
