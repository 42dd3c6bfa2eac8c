"""`lvlm-attn chair truth`: what is in COCO's pictures, from COCO's own annotations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_attn.cli.common import say, tell

if TYPE_CHECKING:
    from lvlm_attn.evals.chair.coco import CocoObjects
    from lvlm_attn.evals.chair.data import GroundTruth

app = typer.Typer(no_args_is_help=True, help="Prepare CHAIR.")

Instances = Annotated[
    list[Path] | None,
    typer.Option("--instances", help="COCO's instances_*.json; repeat for several.", show_default=False),
]
Captions = Annotated[
    list[Path] | None,
    typer.Option("--captions", help="COCO's captions_*.json; repeat for several.", show_default=False),
]
Mode = Annotated[str, typer.Option("--mode", help="strict, pattern or wordnet.")]


@app.command("truth")
def truth(
    out: Annotated[Path, typer.Option("--out", help="The file to write, JSON lines.")],
    instances: Instances = None,
    captions: Captions = None,
    ids: Annotated[
        Path | None,
        typer.Option("--ids", help="Names or ids of the pictures; all without it.", show_default=False),
    ] = None,
    mode: Mode = "strict",
) -> None:
    """Write which objects are in each picture: COCO's instances joined with what its captions mention.

    Example: lvlm-attn chair truth --instances instances_val2014.json --captions captions_val2014.json --out truth.jsonl
    """
    from lvlm_attn.evals.chair.benchmark import read_ids
    from lvlm_attn.evals.chair.coco import truth_lines
    from lvlm_attn.evals.core.jsonio import write_text
    from lvlm_attn.evals.core.pictures import image_key

    wanted = None if ids is None else list(dict.fromkeys(image_key(item) for item in read_ids(ids)))
    coco = read(instances, captions, mode)
    lines = list(truth_lines(coco, wanted))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(f"{line}\n" for line in lines))
    say(f"{out}: {len(lines)} pictures, mode {mode}")
    note(coco)


@app.command("ids")
def ids_command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the lists.")],
    instances: Instances = None,
    captions: Captions = None,
    ground_truth: Annotated[
        list[Path] | None,
        typer.Option("--ground-truth", help="JSON lines {image_id, objects}.", show_default=False),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, help="Pictures in each list.")] = 500,
    subsets: Annotated[
        int, typer.Option("--subsets", min=1, help="How many lists; they share no picture.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Another seed gives other lists.")] = 0,
) -> None:
    """Write frozen lists of pictures for `eval chair --ids`: the same names and seed give the same lists everywhere.

    Example: lvlm-attn chair ids --instances instances_val2014.json --out ids
    """
    from hashlib import sha256

    from lvlm_attn.evals.chair.subsets import disjoint_subsets
    from lvlm_attn.evals.core.jsonio import write_json, write_text
    from lvlm_attn.evals.core.run_folder import check_writable

    known = ground_truth_of(ground_truth, instances, captions, "strict")
    lists = disjoint_subsets(known.objects, count, subsets, seed)
    folder, files = check_writable(out), {}
    for number, listed in enumerate(lists, 1):
        text = "".join(f"{key}\n" for key in listed)
        path = folder / f"chair-{count}-seed{seed}-{number}.txt"
        write_text(path, text)
        files[path.name] = sha256(text.encode()).hexdigest()
        say(f"{path}: {count} pictures, sha256 {files[path.name][:16]}")
    made = {
        "count": count,
        "subsets": subsets,
        "seed": seed,
        "drawn_from": len(known.objects),
        "sha256": files,
    }
    write_json(folder / f"chair-{count}-seed{seed}.json", made)


def read(instances: list[Path] | None, captions: list[Path] | None, mode: str) -> CocoObjects:
    """Reads COCO's files, with a progress bar on a terminal."""
    from lvlm_attn.evals.chair.coco import read_coco

    return read_coco(instances or (), captions or (), mode, show_progress=sys.stderr.isatty())


def note(coco: CocoObjects) -> None:
    """Says what the ground truth lacks."""
    from lvlm_attn.evals.chair.data import truth_of_coco

    for remark in truth_of_coco(coco).notes:
        tell(f"note: {remark}")


def ground_truth_of(
    given: list[Path] | None, instances: list[Path] | None, captions: list[Path] | None, mode: str
) -> GroundTruth:
    """The ground truth of a command: own files, COCO's, or both joined.

    Raises:
        LvlmAttnError: none was named, or one cannot be read.
    """
    from lvlm_attn.errors import LvlmAttnError
    from lvlm_attn.evals.chair.data import load_ground_truth

    files = truth_files(given, instances, captions)
    if not files:
        raise LvlmAttnError(
            "CHAIR needs to know what is in the pictures; pass --ground-truth FILE, or COCO's files with "
            "--instances FILE and --captions FILE."
        )
    return load_ground_truth(files, mode, show_progress=sys.stderr.isatty())


def truth_files(
    given: list[Path] | None, instances: list[Path] | None, captions: list[Path] | None
) -> list[Path]:
    """All files that say what is in the pictures; what each of them is, it tells itself."""
    return [*(given or []), *(instances or []), *(captions or [])]
