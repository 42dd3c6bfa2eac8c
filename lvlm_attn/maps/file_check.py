"""Whether the parts of maps read from a file fit together, so that whoever uses them can rely on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from lvlm_attn.layout.grids import BlockKind, ImageGrid, Kind
from lvlm_attn.layout.prompt import PromptLayout
from lvlm_attn.maps.onto_image import MapImage

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps

_LAYOUT = {"kind": (0, 4), "image": (-1, None), "block": (-1, None), "row": (-1, None), "col": (-1, None)}
_NAMES = ("mean", "rollout")
_MOST = 10**6


def check_parts(maps: AttentionMaps) -> None:
    """Refuses maps whose parts do not fit together.

    Raises:
        ValueError: naming the part.
    """
    _need(maps.rows.dim() == 2, "its rows are no table of samples and rows")
    batch, rows = maps.rows.shape
    length, heads = maps.layout.kind.shape[-1], len(maps.heads) or 1
    for name, (least, most) in _LAYOUT.items():
        value = getattr(maps.layout, name)
        _need(tuple(value.shape) == (batch, length), "its rows, tokens and layout are of different sizes")
        _whole(value, f"the layout's {name}", least, most)
    _need(
        maps.targets.shape == maps.rows.shape and maps.ids.dim() == 2 and maps.ids.shape[0] == batch,
        "its rows, tokens and layout are of different sizes",
    )
    _whole(maps.rows, "a row", -1, length - 1)
    _whole(maps.ids, "a token", 0, None)
    _whole(maps.targets, "a token that a row is about", -1, maps.ids.shape[1] - 1)
    shapes = {
        "weights": (batch, heads, rows, length),
        "extra": (batch, heads, rows),
        "sink_scores": (batch, length),
    }
    for kind, wanted in shapes.items():
        for layer, value in getattr(maps, kind).items():
            _need(layer in _NAMES or _is_whole(layer), f"there is a layer {layer!r}")
            shape = tuple(value.shape)
            _need(shape == wanted, f"{kind} of layer {layer} have shape {shape}, not {wanted}")
    _need(all(map(_is_whole, maps.heads)), "its heads are no numbers")
    if maps.pieces is not None:
        counts = [len(row) for row in maps.pieces]
        _need(counts == [maps.ids.shape[1]] * batch, "its texts are not as many as its tokens")
    _need(
        len(maps.layout.grids) == len(maps.layout.unfinished) == batch,
        "its grids are not as many as its samples",
    )
    _need(len(maps.images) in (0, batch), "its images are not as many as its samples")
    for sample, grids in enumerate(maps.layout.grids):
        _check_grids(maps.layout, sample, grids)
        for image, grid in zip(maps.images[sample] if maps.images else (), grids):
            _check_image(image, grid)
        _need(
            not maps.images or len(maps.images[sample]) == len(grids),
            "its images are not as many as its grids",
        )


def _check_grids(layout: PromptLayout, sample: int, grids: tuple[ImageGrid, ...]) -> None:
    image, block = layout.image[sample], layout.block[sample]
    _need(
        int(image.max()) < len(grids) if image.numel() else True, "a token belongs to an image without a grid"
    )
    unfinished = layout.unfinished[sample]
    _need(_is_whole(unfinished), "how much of an image is left is no number")
    for number, grid in enumerate(grids):
        is_here = image == number
        _need(
            _is_whole(grid.leading_fillers, 0) and _is_whole(grid.trailing_fillers, 0),
            "a grid has odd fillers",
        )
        _need(bool(grid.blocks), "a grid has no blocks")
        for one in grid.blocks:
            _need(_is_whole(one.rows, 1) and _is_whole(one.cols, 1), "a block of patches has an odd size")
            _need(
                one.kind in get_args(BlockKind) and isinstance(one.newline, bool), "a block is of an odd kind"
            )
            tile = (one.tile_row, one.tile_col)
            _need(all(place is None or _is_whole(place, 0) for place in tile), "a tile has an odd place")
            is_timed = (one.time is None or _is_whole(one.time, 0)) and _is_whole(one.frames, 1)
            _need(is_timed, "a frame has an odd time")
        _need(bool(is_here.any()), "an image has no tokens")
        _need(int(block[is_here].max()) < len(grid.blocks), "a token belongs to a block that its grid lacks")
        is_cut = bool(unfinished) and number == len(grids) - 1
        for place, one in enumerate(grid.blocks):
            own = is_here & (block == place) & (layout.kind[sample] == Kind.PATCH)
            _need(is_cut or int(own.sum()) == one.patches, "a block has not as many patches as its grid says")
            for field, most in ((layout.row, one.rows), (layout.col, one.cols)):
                is_inside = not bool(own.any()) or int(field[sample][own].max()) < most
                _need(is_inside, "a patch lies outside its block")


def _check_image(image: MapImage, grid: ImageGrid) -> None:
    _need(isinstance(image.reason, str), "why a place is unknown is no text")
    if image.size is not None:
        _need(
            len(image.size) == 2 and all(_is_whole(side, 1) for side in image.size),
            "an image has an odd size",
        )
    if image.picture is not None:
        _need(image.size == image.picture.size, "a picture is of another size than its image")
    for level in image.levels or ():
        frame = (level.frame.left, level.frame.top, level.frame.right, level.frame.bottom)
        _need(all(_is_number(edge) for edge in frame), "an image has an odd frame")
        _need(frame[0] < frame[2] and frame[1] < frame[3], "an image has an empty frame")
        _need(_is_whole(level.rows, 1) and _is_whole(level.cols, 1), "an image has an odd level")
        if level.shape is not None:
            is_shape = len(level.shape) == 2 and all(_is_whole(side, 1) for side in level.shape)
            _need(is_shape, "a level has blocks of an odd shape")
        for block in level.blocks:
            _need(len(block) == 3 and all(_is_whole(place, 0) for place in block), "a level has odd blocks")
            _need(block[0] < len(grid.blocks), "a level has a block that its grid lacks")
            own = grid.blocks[block[0]]
            rows, cols = level.shape or (own.rows, own.cols)
            _need(
                rows * cols == own.patches, "a block has another shape in its level than patches in its grid"
            )
            is_inside = block[1] + rows <= level.rows and block[2] + cols <= level.cols
            _need(is_inside, "a block lies outside its level")


def _whole(value: Tensor, name: str, least: int, most: int | None) -> None:
    _need(not value.is_floating_point() and not value.is_complex(), f"{name} is no whole number")
    if value.numel():
        found = (int(value.min()), int(value.max()))
        _need(least <= found[0] and (most is None or found[1] <= most), f"{name} is out of range")


def _is_whole(value: Any, least: int = -_MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _MOST


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) <= _MOST)


def _need(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise ValueError(otherwise)
