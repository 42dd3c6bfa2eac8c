"""The benchmarks that commands run: the bundled scenes, or files of the user's."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lvlm_attn.cli.common import tell
from lvlm_attn.errors import LvlmAttnError, closest

if TYPE_CHECKING:
    from lvlm_attn.evals.chair.benchmark import Chair
    from lvlm_attn.evals.pope.benchmark import Pope

DataSet = Annotated[str | None, typer.Option("--data", help="`toy`: the bundled scenes.", show_default=False)]
Scenes = Annotated[int, typer.Option("--scenes", min=1, help="Toy data: how many scenes.")]
PopeScenes = Annotated[
    int,
    typer.Option(
        "--scenes",
        min=1,
        help="Toy data: from how many scenes; those with fewer than 3 kinds of objects are passed over.",
    ),
]
Images = Annotated[
    Path | None, typer.Option("--images", help="Folder that holds the pictures.", show_default=False)
]
Parser = Annotated[str, typer.Option("--parser", help="strict, official, opera, vcd, lmms or vlmeval.")]
Ids = Annotated[
    list[Path] | None,
    typer.Option(
        "--ids",
        help="CHAIR: names or ids of the pictures, all of the ground truth without it; several files are subsets.",
        show_default=False,
    ),
]
FixTypo = Annotated[bool, typer.Option("--fix-typo", help="Ask 'image' where the file says 'imange'.")]


def pope_of(
    files: Sequence[Path],
    images: Path | None,
    data: str | None,
    split: str,
    scenes: int,
    parser: str,
    limit: int | None,
    fix_typo: bool = False,
) -> Pope:
    """POPE as the options of a command say; what is odd about files is told.

    Raises:
        LvlmAttnError: neither files nor bundled data, or both.
    """
    if use_toy(data, {"--questions": files, "--images": images}):
        from lvlm_attn.toy.benchmarks import toy_pope

        return toy_pope(split, scenes, parser, limit)
    if not files or images is None:
        raise LvlmAttnError("POPE needs --questions FILE and --images FOLDER, or --data toy.")
    from lvlm_attn.evals.pope.benchmark import Pope

    benchmark = Pope.from_files(files, images, parser, limit, fix_typo)
    for remark in benchmark.remarks:
        tell(f"note: {remark}")
    return benchmark


def chair_of(
    truth: Sequence[Path],
    images: Path | None,
    ids: list[Path] | None,
    data: str | None,
    split: str,
    scenes: int,
    mode: str,
    drop_incomplete_sentence: bool,
    prompt: str,
    limit: int | None,
) -> Chair:
    """CHAIR as the options of a command say.

    Raises:
        LvlmAttnError: neither files nor bundled data, or both.
    """
    if use_toy(data, {"--ids": ids, "--images": images, "--ground-truth": truth}):
        from lvlm_attn.toy.benchmarks import toy_chair

        return toy_chair(split, scenes, mode, drop_incomplete_sentence, prompt, limit)
    if images is None or not truth:
        raise LvlmAttnError(
            "CHAIR needs --images FOLDER and --ground-truth FILE or COCO's --instances and --captions, "
            "or --data toy."
        )
    from lvlm_attn.evals.chair.benchmark import Chair

    return Chair.from_files(
        truth, images, ids, mode, drop_incomplete_sentence, prompt, limit, sys.stderr.isatty()
    )


def use_toy(data: str | None, files: dict[str, object]) -> bool:
    """Whether the bundled data is asked for.

    Raises:
        LvlmAttnError: unknown data, or bundled data together with files.
    """
    if data is None:
        return False
    if data != "toy":
        raise LvlmAttnError(f"no bundled data {data!r}.{closest(data, ['toy'])} Only --data toy is bundled.")
    given = [name for name, value in files.items() if value]
    if given:
        raise LvlmAttnError(
            f"--data toy brings its own pictures and questions; leave out {' and '.join(given)}."
        )
    return True
