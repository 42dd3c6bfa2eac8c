"""Molmo 2: rows told by column tokens or by the encoder's crop, and images that attend to one another."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import lvlm_attn as la
from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import ImageInputs, family_of, models, prompt_layout
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.layout.prompt import PromptLayout
from tests.oracle_setup import relative_error, sink_model
from tests.tiny import tiny_inputs, tiny_model, tiny_samples
from tests.tiny.parts import BREAK, END, IMAGE, START, TAG

pytestmark = pytest.mark.skipif(
    not hasattr(transformers, "Molmo2Config"), reason="this version of transformers has no Molmo 2"
)
model_of = cache(tiny_model)
LOW, HIGH = (3, 3), (5, 3)


def written(low_columns: bool, high_columns: bool, low: Any = LOW, high: Any = HIGH) -> list[int]:
    """The ids of one image, with or without column tokens after the rows of its views."""
    found = []
    for start, (rows, cols), columns in ((TAG, low, low_columns), (START, high, high_columns)):
        found += [start, *([IMAGE] * cols + [BREAK] * columns) * rows, END]
    return found


def layout_of(ids: list[int], **call: Any) -> PromptLayout:
    tokens = torch.tensor([ids])
    types = torch.isin(tokens, torch.tensor([IMAGE, START, BREAK, TAG, END])).int()
    config = model_of("molmo2").config
    return prompt_layout(family_of(config), ImageInputs(config, tokens, {"mm_token_type_ids": types, **call}))


def encoded(*counts: int) -> dict[str, Any]:
    """What `generate` hands on of images that take so many tokens."""
    return {
        "mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=[torch.zeros(n, 4) for n in counts])}
    }


@pytest.mark.parametrize("low_columns", [False, True])
def test_rows_are_told_where_generate_hides_them(low_columns: bool) -> None:
    one, other = written(low_columns, True), written(low_columns, True, high=(2, 6))
    found = layout_of([50, *one, *other, 51], **encoded(24, 21))
    shapes = [[(block.rows, block.cols) for block in grid.blocks] for grid in found.grids[0]]
    assert shapes == [[LOW, HIGH], [LOW, (2, 6)]]
    assert [[block.kind for block in grid.blocks] for grid in found.grids[0]] == [["base", "tiles"]] * 2
    assert found.image[0].tolist() == [-1, *[0] * len(one), *[1] * len(other), -1]
    assert torch.equal(found.is_patch[0], torch.tensor([50, *one, *other, 51]) == IMAGE)
    told = layout_of([50, *one, *other, 51], image_grids=torch.tensor([[*LOW, *HIGH], [*LOW, 2, 6]]))
    assert told.grids == found.grids
    assert all(torch.equal(a, b) for a, b in zip(told.tensors, found.tensors))


def test_without_column_tokens_the_sizes_tell_and_generate_is_refused() -> None:
    ids = [50, *written(False, False), 51]
    (grid,) = layout_of(ids, image_grids=torch.tensor([[*LOW, *HIGH]])).grids[0]
    assert grid == ImageGrid((Block(*LOW, "base"), Block(*HIGH, "tiles")))
    with pytest.raises(
        UnsupportedError, match=r"15 tokens without a column token.*image_use_col_tokens=True"
    ):
        layout_of(ids, **encoded(24))


def test_a_whole_image_whose_rows_are_not_certain_is_refused() -> None:
    """Six patches make 6 tokens in windows of 1 x 6, 6 x 1, 2 x 3 and 3 x 2."""
    with pytest.raises(UnsupportedError, match=r"takes 6 tokens.*use_single_crop_col_tokens=True"):
        layout_of([50, *written(False, True, low=(2, 3)), 51], **encoded(21))


@pytest.mark.parametrize(
    ("ids", "call", "message"),
    [
        (
            written(False, True),
            {"image_grids": torch.tensor([[3, 3, 3, 5]])},
            "rows of .5,|rows of .3, 3.*say 3x5",
        ),
        (
            written(False, True),
            encoded(25),
            "takes 25 tokens in two views, and the prompt has 24 for it in 2",
        ),
        (written(False, True), encoded(9), "takes 9 tokens in two views, and the prompt has 9 for it in 1"),
        (written(False, True) * 2, encoded(24), "more image tokens than its 1 images take"),
        (written(False, True), {}, "neither image_grids nor image features"),
    ],
)
def test_ids_and_images_that_do_not_go_together(ids: list[int], call: Any, message: str) -> None:
    with pytest.raises(LvlmAttnError, match=message):
        layout_of([50, *ids, 51], **call)


def test_rows_of_unequal_length_are_refused() -> None:
    ids = written(False, True)
    ids.remove(BREAK)
    with pytest.raises(UnsupportedError, match=r"\[6, 3, 3, 3\] tokens long"):
        layout_of([50, *ids, 51], **encoded(24))


def test_videos_are_refused_though_they_have_the_id_of_images() -> None:
    with pytest.raises(UnsupportedError, match="holds a video"):
        layout_of([50, IMAGE, 51], pixel_values_videos=torch.zeros(1, 36, 12))


def test_an_image_attends_to_later_images_and_their_markers() -> None:
    """As the model has it; methods that keep or hide count on either side."""
    model = sink_model("molmo2")
    inputs = tiny_inputs("molmo2", model, [(2,)])
    [sample] = tiny_samples("molmo2", model, [(2,)])
    with torch.no_grad(), la.wrap(model, la.record(rows="all")) as lvlm:
        model(**inputs)
        maps = lvlm.maps
    assert maps.rows[0, : len(sample.ids)].tolist() == list(range(len(sample.ids)))
    weights = maps.weights[1][0, 0, : len(sample.ids)]
    image = torch.tensor([-1 if number is None else number for number in sample.image])
    first, second = (image == number for number in (0, 1))
    assert (weights[first][:, second] > 0).all()
    later_text = (image < 0) & (torch.arange(len(image)) > int(first.nonzero()[-1]))
    assert not weights[first][:, later_text].any()


def test_rows_of_a_batch_do_not_depend_on_the_windows_of_others() -> None:
    """Windows name patches by their number in the batch; a view of one row brings them along."""
    model = sink_model("molmo2")
    inputs = tiny_inputs("molmo2", model, [(2,), (1,), (0,)])
    with torch.no_grad(), la.wrap(model, la.VCD(alpha=0.5, beta=0)) as lvlm:
        options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
        options |= {"return_dict_in_generate": True, "output_logits": True}
        whole = torch.stack(lvlm.generate(**inputs, **options).logits, 1)
        for place, spec in enumerate([(2,), (1,)]):
            alone = row_of(inputs, place, model)
            assert (
                relative_error(
                    torch.stack(lvlm.generate(**alone, **options).logits, 1)[0], whole[place].double()
                )
                < 3e-5
            ), spec


def row_of(inputs: dict[str, Tensor], place: int, model: Any) -> dict[str, Tensor]:
    from lvlm_attn.prompts.pixels import join_pictures
    from lvlm_attn.prompts.request import Request
    from lvlm_attn.prompts.rows import tokens_of
    from lvlm_attn.wrapping import target_of

    request = Request.of_tensors(target_of(model), inputs)
    tokens = {key: value[place : place + 1] for key, value in tokens_of(inputs).items()}
    return tokens | join_pictures([request.pictures[place]])


@pytest.mark.parametrize(
    ("grid", "pooling", "covers"),
    [
        ((14, 14, 14, 23), [2, 2], [(0, 0, 28 / 27, 28 / 27), (0, 0, 1, 28 / 27)]),
        ((9, 9, 16, 9), [3, 3], [(0, 0, 1, 1), (0, -1 / 46, 1, 1 + 1 / 46)]),
    ],
)
def test_windows_that_are_not_full_reach_beyond_the_picture(
    grid: tuple[int, int, int, int], pooling: list[int], covers: list[tuple[float, ...]]
) -> None:
    images = SimpleNamespace(
        size={"height": 378}, patch_size=14, overlap_margins=[4, 4], max_crops=8, pooling_size=pooling
    )
    fit = models()["molmo2"].fit
    assert fit is not None
    shown = ImageGrid((Block(*grid[:2], "base"), Block(*grid[2:], "tiles")))
    found = fit(shown, (90, 60), None, images)
    assert found.shapes == [grid[:2], grid[2:]]
    assert found.whole_covers is not None
    assert found.tiles_cover is not None
    for rectangle, (left, top, right, bottom) in zip((found.whole_covers, found.tiles_cover), covers):
        assert (rectangle.left, rectangle.top) == pytest.approx((left, top))
        assert (rectangle.right, rectangle.bottom) == pytest.approx((right, bottom))


def test_a_view_that_the_image_processor_does_not_make_is_refused() -> None:
    images = SimpleNamespace(
        size={"height": 378}, patch_size=14, overlap_margins=[4, 4], max_crops=8, pooling_size=[2, 2]
    )
    fit = models()["molmo2"].fit
    assert fit is not None
    with pytest.raises(UnsupportedError, match="90 x 60 pixels came as base 14x14"):
        fit(ImageGrid((Block(14, 14, "base"), Block(15, 14, "tiles"))), (90, 60), None, images)
