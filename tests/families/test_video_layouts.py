"""What every token of a prompt with videos is: in a forward, in `generate`, and before either."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.layout.prompt import Kind, PromptLayout
from tests.families.image_inputs import caught, layout_of
from tests.families.video_cases import batch_of
from tests.tiny import tiny_inputs, tiny_model
from tests.tiny.videos import (
    GLM,
    LLAVA,
    SPLIT,
    VIDEO_NAMES,
    WHOLE,
    Row,
    clip,
    collated,
    video_inputs,
    video_rows,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*right-padding.*")
model_of = cache(tiny_model)


def expected(name: str, rows: list[Row], side: str) -> list[torch.Tensor]:
    """Kind, image, block, row and column of every position, token by token; -2 where an image's own grid says it."""
    length = max(len(row.ids) for row in rows)
    found = torch.full((5, len(rows), length), -1)
    found[0] = int(Kind.PAD)
    for index, row in enumerate(rows):
        offset = length - len(row.ids) if side == "left" else 0
        seen = [0] * len(row.blocks)
        for place, image in enumerate(row.image):
            at = found[:, index, offset + place]
            if image is None:
                at[0] = int(Kind.TEXT)
                continue
            at[1] = image
            if not row.blocks[image]:
                at[[0, 2, 3, 4]] = -2
            elif place in row.newlines:
                at[0] = int(Kind.FILLER)
            else:
                rest, block = seen[image], 0
                while rest >= row.blocks[image][block][0] * row.blocks[image][block][1]:
                    rest -= row.blocks[image][block][0] * row.blocks[image][block][1]
                    block += 1
                cols = row.blocks[image][block][1]
                at[:] = torch.tensor([int(Kind.PATCH), image, block, rest // cols, rest % cols])
                seen[image] += 1
    return list(found)


def assert_is(layout: PromptLayout, name: str, rows: list[Row], side: str) -> None:
    for got, want in zip(layout.tensors, expected(name, rows, side), strict=True):
        assert torch.equal(got[want != -2], want[want != -2])
    for row, grids in zip(rows, layout.grids, strict=True):
        clips = iter(row.clips)
        for blocks, grid in zip(row.blocks, grids, strict=True):
            if grid.is_video:
                item, _ = next(clips)
                assert [(b.rows, b.cols, b.time) for b in grid.blocks] == [
                    (item.rows, item.cols, time) for time in range(item.count)
                ]
                assert {(b.kind, b.frames) for b in grid.blocks} == {("frame", 1 if name in LLAVA else 2)}
            elif blocks:
                assert [(b.rows, b.cols) for b in grid.blocks] == blocks
        assert next(clips, None) is None


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_forward_generate_and_processor_outputs_agree(name: str, side: Any) -> None:
    model = model_of(name)
    batch = [*batch_of(name), (2, clip(name, 3, 3, seconds=2.5), clip(name, 3, 4), 1)]
    if name in LLAVA or name in SPLIT or name in GLM:  # whose videos may stand side by side
        batch.append((1, clip(name, 3), clip(name, 3), 2))
    else:
        batch[-1] = (2, clip(name, 3, 3, seconds=2.5), 1, clip(name, 1, 4, seconds=0.1), 1)
    rows = video_rows(name, model, batch)
    inputs = collated(name, model, rows, side)
    assert_is(layout_of(model, lambda: model(**inputs)), name, rows, side)
    assert_is(
        layout_of(model, lambda: model.generate(**inputs, max_new_tokens=1, do_sample=False)),
        name,
        rows,
        side,
    )
    early = prompt_layout(
        family_of(model), ImageInputs(model.config, inputs["input_ids"], inputs), inputs["attention_mask"]
    )
    assert_is(early, name, rows, side)
    assert early.has_image.tolist() == [bool(row.blocks) for row in rows]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("name", VIDEO_NAMES)
def test_numbers_of_frames(name: str, count: int) -> None:
    model = model_of(name)
    rows = video_rows(name, model, [(2, clip(name, count, number), 2) for number in range(5)])
    inputs = collated(name, model, rows)
    assert_is(layout_of(model, lambda: model(**inputs)), name, rows, "left")
    assert_is(layout_of(model, lambda: model.generate(**inputs, max_new_tokens=1)), name, rows, "left")


@pytest.mark.parametrize("name", [name for name in VIDEO_NAMES if name not in GLM])
def test_a_second_turn_with_a_video_goes_on(name: str) -> None:
    """What the cache holds is an image, what comes is a video."""
    model = model_of(name)
    first = tiny_inputs(name, model, [(1,)])
    [row] = video_rows(name, model, [(2, clip(name, 3), 2)])
    second = collated(name, model, [row])
    before = prompt_layout(family_of(model), ImageInputs(model.config, first["input_ids"], first))
    both = prompt_layout(
        family_of(model), ImageInputs(model.config, second["input_ids"], second, after=before)
    )
    alone = prompt_layout(family_of(model), ImageInputs(model.config, second["input_ids"], second))
    for got, want in zip(both.tensors, before.join(alone).tensors):
        assert torch.equal(got, want)
    assert [grid.is_video for grid in both.grids[0]] == [False, True]


@pytest.mark.parametrize("name", WHOLE)
def test_frames_that_follow_quickly_may_share_a_time(name: str) -> None:
    """Positions in time are whole numbers; the grid is told from rows and columns."""
    model = model_of(name)
    rows = video_rows(name, model, [(2, clip(name, 5, 0, seconds=0.05), 2)])
    inputs = collated(name, model, rows)
    assert_is(layout_of(model, lambda: model.generate(**inputs, max_new_tokens=1)), name, rows, "left")


class TestRefusals:
    @pytest.mark.parametrize("name", [name for name in VIDEO_NAMES if name not in LLAVA])
    def test_plain_positions(self, name: str) -> None:
        model = model_of(name)
        inputs = video_inputs(name, model, [(2, clip(name, 3), 2)])
        del inputs["mm_token_type_ids"]
        with pytest.raises(LvlmAttnError, match=r"videos .*plain text positions.*pass mm_token_type_ids"):
            layout_of(model, lambda: model.generate(**inputs, max_new_tokens=1))

    @pytest.mark.parametrize("name", [name for name in VIDEO_NAMES if name not in LLAVA])
    def test_positions_of_another_size(self, name: str) -> None:
        model = model_of(name)
        inputs = video_inputs(name, model, [(2, clip(name, 3), 2)])
        call = caught(model, lambda: model(**inputs))[0].image_inputs
        swapped = {**call.call, "video_grid_thw": inputs["video_grid_thw"][:, [0, 2, 1]]}
        with pytest.raises(LvlmAttnError, match=r"span \(3, 2, 3\).*video_grid_thw says \(3, 3, 2\)"):
            prompt_layout(family_of(model), replace(call, call=swapped))

    @pytest.mark.parametrize("name", VIDEO_NAMES)
    def test_more_frames_than_tokens(self, name: str) -> None:
        model = model_of(name)
        short = video_inputs(name, model, [(2, clip(name, 2), 2)])
        long = video_inputs(name, model, [(2, clip(name, 3), 2)])
        inputs = long | {"input_ids": short["input_ids"]}
        if name not in LLAVA:
            inputs["mm_token_type_ids"] = short["mm_token_type_ids"]
        with pytest.raises(LvlmAttnError, match=r"takes .* (left for it|stand for it)"):
            prompt_layout(family_of(model), ImageInputs(model.config, inputs["input_ids"], inputs))

    @pytest.mark.parametrize("name", LLAVA)
    def test_tokens_without_a_video(self, name: str) -> None:
        model = model_of(name)
        ids = video_inputs(name, model, [(2, clip(name, 2), 2)])["input_ids"]
        with pytest.raises(LvlmAttnError, match="pass pixel_values_videos as the processor returns them"):
            prompt_layout(family_of(model), ImageInputs(model.config, ids))

    @pytest.mark.parametrize("name", GLM)
    def test_images_and_videos_in_one_call(self, name: str) -> None:
        model = model_of(name)
        inputs = video_inputs(name, model, [(2, clip(name, 2), 2)]) | {"pixel_values": torch.zeros(4, 96)}
        with pytest.raises(UnsupportedError, match=r"videos: GLM.*one token id"):
            prompt_layout(family_of(model), ImageInputs(model.config, inputs["input_ids"], inputs))

    @pytest.mark.parametrize("name", GLM)
    def test_the_placeholder_of_a_video(self, name: str) -> None:
        model = model_of(name)
        with pytest.raises(LvlmAttnError, match="placeholder of a video, id 4"):
            prompt_layout(family_of(model), ImageInputs(model.config, torch.tensor([[7, 4, 8]])))

    def test_an_image_within_a_video(self) -> None:
        model = model_of("llava_onevision")
        inputs = video_inputs("llava_onevision", model, [(2, clip("llava_onevision", 2), 2, "image", 2)])
        ids = inputs["input_ids"].clone()
        ids[0, 5] = model.config.image_token_id
        with pytest.raises(LvlmAttnError, match="has an image token before its video of 9 tokens"):
            prompt_layout(family_of(model), ImageInputs(model.config, ids, inputs))
