"""`lvlm-attn pope build`: POPE questions from lists of objects or from COCO's annotations."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lvlm_attn.cli.chair import Captions, Instances, note, read
from lvlm_attn.cli.common import say, tell
from lvlm_attn.errors import LvlmAttnError

if TYPE_CHECKING:
    from lvlm_attn.evals.pope.build import ImageObjects

app = typer.Typer(no_args_is_help=True, help="Make POPE questions.")


@app.command("build")
def build(
    out: Annotated[Path, typer.Option("--out", help="Folder for the question files.")],
    objects: Annotated[
        Path | None, typer.Option("--objects", help="JSON lines {image, objects}.", show_default=False)
    ] = None,
    instances: Instances = None,
    captions: Captions = None,
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
    """Build the random, popular and adversarial questions of the POPE protocol, with an explicit seed.

    Example: lvlm-attn pope build --instances instances_val2014.json --captions captions_val2014.json --out questions
    """
    from lvlm_attn.evals.core.jsonio import write_json, write_text
    from lvlm_attn.evals.core.run_folder import check_writable
    from lvlm_attn.evals.pope.build import build_questions, question_row, usable

    pictures, source = _pictures(objects, instances, captions)
    built = build_questions(pictures, k=k, images=images, seed=seed)
    passed = len(pictures) - len(usable(pictures, k))
    if passed:
        tell(
            f"note: {passed} of {len(pictures)} pictures hold fewer than {k} kinds of objects and are passed over."
        )
    folder = check_writable(out)
    start = name or (objects.stem if objects else "coco")
    files = {}
    for split, questions in built.items():
        path = folder / f"{start}_pope_{split}.json"
        write_text(
            path, "".join(json.dumps(question_row(item), ensure_ascii=False) + "\n" for item in questions)
        )
        files[path.name] = {"questions": len(questions), "sha256": sha256(path.read_bytes()).hexdigest()}
        say(f"{path}: {len(questions)} questions")
    write_json(
        folder / f"{start}_pope_build.json",
        {"objects": source, "k": k, "images": len(built["random"]) // (2 * k), "seed": seed, "files": files},
    )


def _pictures(
    objects: Path | None, instances: list[Path] | None, captions: list[Path] | None
) -> tuple[list[ImageObjects], dict[str, Any]]:
    """The objects of each picture, and what is written down about where they are from.

    Raises:
        LvlmAttnError: neither or both kinds of files were named, or one cannot be read.
    """
    from lvlm_attn.evals.core.jsonio import read_bytes
    from lvlm_attn.evals.pope.build import objects_of_coco, read_objects

    coco_files = [*(instances or []), *(captions or [])]
    if (objects is None) == (not coco_files):
        raise LvlmAttnError(
            "POPE is built from --objects FILE, or from COCO's --instances and --captions; name one."
        )
    if objects is not None:
        digest = sha256(read_bytes(objects, "object file")).hexdigest()
        return read_objects(objects), {"name": objects.name, "sha256": digest}
    coco = read(instances, captions, "strict")
    note(coco)
    return objects_of_coco(coco), {"name": ", ".join(path.name for path in coco_files), "sha256": coco.sha256}
