"""Rows and columns against where transformers itself puts the features of each place of an image."""

from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.families.anyres import grid_of_size
from lvlm_attn.layout.prompt import Kind
from tests.tiny import IMAGE, SIZES, tiny_inputs, tiny_model

model_of = cache(tiny_model)


def packed_places(model: Any, size: tuple[int, int]) -> Tensor:
    """`(tokens, 3)`: what transformers packs into an image whose patches hold their own place.

    The place is `(0, row, col)` in the base block, `(1, row, col)` in the joined tiles, and -1 for newlines.
    """
    config = model.config
    edge = config.vision_config.image_size
    side = edge // config.vision_config.patch_size
    best = transformers.image_processing_utils.select_best_resolution(size, config.image_grid_pinpoints)
    rows, cols = best[0] // edge, best[1] // edge
    row, col = torch.arange(side).repeat_interleave(side), torch.arange(side).repeat(side)
    places = [torch.stack((torch.zeros_like(row), row, col), -1)]
    for tile in range(rows * cols):
        down, right = divmod(tile, cols)
        places.append(torch.stack((torch.ones_like(row), down * side + row, right * side + col), -1))
    options = {"vision_feature_select_strategy": "default"} if config.model_type == "llava_next" else {}
    packed, _ = model.model.pack_image_features(
        [torch.stack(places).float()],
        torch.tensor([size]),
        image_newline=torch.full((3,), -1.0),
        **options,
    )
    assert isinstance(packed[0], Tensor)
    return packed[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in ("llava_next", "llava_onevision") for size in SIZES[name]],
)
def test_anyres_tokens_show_the_place_the_layout_says(name: str, size: tuple[int, int]) -> None:
    model = model_of(name)
    part, row, col = packed_places(model, size).T
    part = part.round()  # averages of ones
    ids = torch.full((1, len(part)), IMAGE)
    call = {"image_sizes": torch.tensor([size]), "batch_num_images": torch.tensor([1])}
    layout = prompt_layout(family_of(model), ImageInputs(model.config, ids, call))
    assert torch.equal(layout.is_filler[0], part == -1)
    base = (layout.block[0] == 0) & layout.is_patch[0]
    assert torch.equal(base, part == 0)
    assert torch.equal(layout.row[0][base].float(), row[base])
    assert torch.equal(layout.col[0][base].float(), col[base])
    tiles = layout.is_patch[0] & ~base
    assert torch.equal(tiles, part == 1)
    for found, place in ((layout.row[0][tiles], row[tiles]), (layout.col[0][tiles], col[tiles])):
        if len(found) == 0 or found.max() == 0:
            continue
        # one apart, or evenly farther where OneVision scales down; padding may be cut before the first
        step = (place.max() - place.min()) / found.max()
        assert 1 <= step < 2.5
        torch.testing.assert_close(place, place.min() + found * step)


def test_sizes_above_reach_every_branch() -> None:
    """Padding cut on either side, no row or no column left, and a picture that is scaled down."""

    def tiles(name: str, size: tuple[int, int]) -> tuple[int, int] | None:
        model = model_of(name)
        grid = grid_of_size(size, model.config, 9 if name == "llava_onevision" else None)
        return (grid.blocks[1].rows, grid.blocks[1].cols) if len(grid.blocks) > 1 else None

    assert [tiles("llava_next", size) for size in SIZES["llava_next"]] == [
        (8, 4),
        (4, 4),
        (2, 12),
        (4, 0),
        (4, 8),
        None,
    ]
    assert tiles("llava_onevision", (24, 24)) == (9, 9)
    assert tiles("llava_onevision", (35, 1)) == (18, 1)


def test_internvl_shuffles_pixels_row_by_row() -> None:
    """The features of a tile hold the place of the four patches that were put together."""
    model = model_of("internvl")
    place = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0)).view(1, 8, 8, 2)
    shuffled = model.model.pixel_shuffle(place, scale_factor=0.5).reshape(16, 4, 2)
    layout = prompt_layout(family_of(model), ImageInputs(model.config, torch.full((1, 16), IMAGE)))
    assert torch.equal(shuffled[..., 0].mean(1), 2 * layout.row[0] + 0.5)
    assert torch.equal(shuffled[..., 1].mean(1), 2 * layout.col[0] + 0.5)


def test_internvl_thumbnail_is_last() -> None:
    model = model_of("internvl")
    grids = family_of(model).grids(ImageInputs(model.config, torch.tensor([[5] + [IMAGE] * 48 + [6]])))
    assert [block.kind for block in grids[0].blocks] == ["tile", "tile", "thumbnail"]


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_qwen_rows_and_columns_are_the_rotary_ones(name: str) -> None:
    model = model_of(name)
    inputs = tiny_inputs(name, model, [(1,), (2,)], "right")
    positions, _ = model.model.get_rope_index(
        inputs["input_ids"],
        image_grid_thw=inputs["image_grid_thw"],
        attention_mask=inputs["attention_mask"],
        mm_token_type_ids=inputs["mm_token_type_ids"],
    )
    layout = prompt_layout(
        family_of(model), ImageInputs(model.config, inputs["input_ids"], inputs), inputs["attention_mask"]
    )
    for row in range(2):
        for image in range(row + 1):
            inside = (layout.image[row] == image).nonzero().flatten()
            _, height, width = positions[:, row, inside]
            assert torch.equal(layout.row[row, inside], height - height[0])
            assert torch.equal(layout.col[row, inside], width - width[0])


def test_llava_keeps_the_class_token_in_front() -> None:
    model = tiny_model("llava", vision_feature_select_strategy="full")
    inputs = tiny_inputs("llava", model, [(1, 0, 1)])
    layout = prompt_layout(family_of(model), ImageInputs(model.config, inputs["input_ids"], inputs))
    assert (inputs["input_ids"] == IMAGE).sum() == 26
    assert layout.kind[0, :3].tolist() == [Kind.TEXT, Kind.FILLER, Kind.PATCH]
