"""Grids of videos against what the families' processors write, at odd frame counts and sizes.

Video processors need torchvision. Without it the prompts are made by their rules (`tests.families.video_counts`);
with it the rules are compared with the processors.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.utils import is_torchvision_available

from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.layout.prompt import PromptLayout
from tests.families.video_counts import RULES
from tests.families.video_processors import config, id_of, processed
from tests.tiny.videos import GLM, LLAVA, SPLIT
from tests.versions import needs_own_image_processors

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Size = tuple[int, int]
VIDEOS: list[tuple[int, Size]] = [
    (4, (40, 60)),
    (5, (333, 500)),
    (2, (97, 703)),
    (7, (641, 79)),
    (3, (30, 30)),
]
ROWS = [[(4, (333, 500))], [(4, (97, 403)), (4, (56, 56))]]
needs_torchvision = pytest.mark.skipif(not is_torchvision_available(), reason="video processors need it")


def by_rule(name: str, rows: list[list[tuple[int, Size]]]) -> dict[str, Any]:
    """What the processor's rule makes of rows of videos: ids and what tells the model their sizes, no values."""
    look = id_of("look")
    frame = id_of("<image>" if name in GLM else "<video>")
    ids: list[list[int]] = []
    blocks = [[RULES[name](*video) for video in row] for row in rows]
    for row in blocks:
        ids.append([look])
        for count, down, across in row:
            block = [frame] * (down * across)
            apart = [look] if name in (*GLM, *SPLIT) else []
            ids[-1] += [*(apart + block) * count, *[frame] * (name == "llava_onevision"), look]
    length = max(map(len, ids))
    found = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
    }
    flat = [one for row in blocks for one in row]
    if name in LLAVA:
        return found | {"pixel_values_videos": torch.zeros(len(flat), flat[0][0], 3, 1, 1)}
    sizes = torch.tensor([(count, 2 * down, 2 * across) for count, down, across in flat])
    kinds = 2 * (found["input_ids"] == frame).int()
    return found | {
        "pixel_values_videos": torch.zeros(int(sizes.prod(1).sum()), 1),
        "video_grid_thw": sizes,
        "mm_token_type_ids": kinds,
    }


def layout_of(name: str, inputs: Any) -> PromptLayout:
    image_inputs = ImageInputs(config(name), inputs["input_ids"], inputs)
    return prompt_layout(family_of(config(name)), image_inputs, inputs["attention_mask"])


def check(name: str, rows: list[list[tuple[int, Size]]], inputs: Any) -> None:
    layout = layout_of(name, inputs)
    frame = id_of("<image>" if name in GLM else "<video>")
    assert torch.equal(layout.is_patch | layout.is_filler, inputs["input_ids"] == frame)
    for row, grids in zip(rows, layout.grids, strict=True):
        assert len(row) == len(grids)
        for video, grid in zip(row, grids):
            count, down, across = RULES[name](*video)
            assert [(block.rows, block.cols) for block in grid.blocks] == [(down, across)] * count
            assert [block.time for block in grid.blocks] == [*range(count)]
            assert {block.frames for block in grid.blocks} == {1 if name in LLAVA else 2}
            assert grid.trailing_fillers == (name == "llava_onevision")


@pytest.mark.parametrize("name", RULES)
def test_tokens_of_odd_videos(name: str) -> None:
    for video in VIDEOS:
        check(name, [[video]], by_rule(name, [[video]]))
    check(name, ROWS, by_rule(name, ROWS))


def test_tokens_a_frame_of_published_models() -> None:
    [[grid]] = layout_of("llava_next_video", by_rule("llava_next_video", [[(8, (360, 640))]])).grids
    assert grid.tokens == 8 * 144
    [[grid]] = layout_of("llava_onevision", by_rule("llava_onevision", [[(8, (360, 640))]])).grids
    assert grid.tokens == 8 * 196 + 1


@needs_torchvision
@needs_own_image_processors
@pytest.mark.parametrize("name", RULES)
def test_rules_are_the_processors_own(name: str) -> None:
    for video in VIDEOS:
        check(name, [[video]], processed(name, [[video]]))
    check(name, ROWS, processed(name, ROWS))
