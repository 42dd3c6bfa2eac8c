"""Idefics3: tiles row by row, each after a tag, then the whole image (https://arxiv.org/abs/2408.12637).

Every tile takes `(image_size / patch_size / scale_factor)^2` tokens. Before each stands a frame token and a tag; a
newline ends a row of tiles. The last tile of every image is the global one, whose tag is the same in all images, so
the tags tell where an image ends, and the newlines how its tiles are arranged.
"""

from __future__ import annotations

from lvlm_attn.families.family import Family, ImageInputs
from lvlm_attn.families.tiles import Run, check_tiles, grouped, runs_of, shuffled_side, tiles_then_whole
from lvlm_attn.layout.grids import ImageGrid


def grids(image_inputs: ImageInputs) -> list[ImageGrid]:
    """One image up to each global tile.

    Raises:
        UnsupportedError: if a run of image tokens is no tile.
    """
    rows, cols = shuffled_side(image_inputs.config, image_inputs.config.scale_factor)
    runs = runs_of(image_inputs)
    check_tiles(image_inputs, runs, rows * cols)
    # The last tile of a row of the batch is global, so its tag is that of all global tiles.
    whole = {run.row: _tag(run) for run in runs}
    ends = {(run.row, run.stop) for run in runs if _tag(run) == whole[run.row]}
    groups = grouped(runs, lambda run: (run.row, run.start - len(run.before)) in ends)
    return [tiles_then_whole(len(group), rows, cols, _across(group)) for group in groups]


def _tag(run: Run) -> int:
    return run.before[-1] if run.before else -1


def _across(group: list[Run]) -> int | None:
    """Tiles in a row: up to the first that a newline stands before, besides its frame token and tag."""
    breaks = [place for place, run in enumerate(group) if place and len(run.before) > 2]
    tiles = len(group) - 1
    return breaks[0] if breaks and tiles % breaks[0] == 0 else None


FAMILY = Family(
    name="idefics3",
    title="Idefics3",
    grids=grids,
    remarks="13 x 13 patches a tile, the whole image last; tags and newlines between tiles are fillers.",
    examples=("HuggingFaceM4/Idefics3-8B-Llama3",),
    language_model="text_model",
    vision="vision_model",
    marks_between=True,
    encoder=False,
)
