"""Grids of families after the first eight against their processors: token counts at odd sizes, several pictures.

Processors that need torchvision are taken at their rule (`tests.families.counts`) where it is not installed, and the
rule is compared with the processor where it is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.utils import is_torchvision_available

from lvlm_attn.families import ImageInputs, family_of, prompt_layout
from lvlm_attn.layout.prompt import PromptLayout
from tests.families.counts import RULES
from tests.families.more_processors import (
    IMAGE,
    MAKERS,
    NEEDS_TORCHVISION,
    PLACEHOLDER,
    SIZES,
    config,
    id_of,
    tokenizer,
)
from tests.versions import needs_own_image_processors

pytestmark = [
    needs_own_image_processors,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ROWS = [[(333, 500)], [], [(97, 1203), (641, 479)]]
Size = tuple[int, int]


@cache
def processor(name: str) -> Any:
    if name == "smolvlm":
        pytest.importorskip("num2words")
    return MAKERS[name]()


def picture(size: Size) -> Image.Image:
    return Image.fromarray(np.random.default_rng(sum(size)).integers(0, 255, (*size, 3), dtype=np.uint8))


def by_rule(name: str, rows: list[list[Size]]) -> dict[str, Any]:
    """What the processor's rule makes of rows of pictures: ids and what tells the model their sizes, no pixels."""
    look = id_of("look")
    written = [[RULES[name](size) for size in row] for row in rows]
    ids = [[look, *(id_of(word) for words, _ in row for word in [*words, "look"]), look] for row in written]
    length = max(map(len, ids))
    inputs = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in ids]),
    }
    if name == "mistral3":
        inputs["image_sizes"] = torch.tensor([size for row in written for _, size in row])
    if name == "molmo2":
        inputs["image_grids"] = torch.tensor([shapes for row in written for _, shapes in row])
        marks = torch.tensor([id_of(word) for word in {*RULES[name]((9, 9))[0]}])
        inputs["mm_token_type_ids"] = torch.isin(inputs["input_ids"], marks).int()
    return inputs


def processed(name: str, rows: list[list[Size]]) -> Any:
    """What the processor makes of rows of pictures of the given heights and widths."""
    if name in NEEDS_TORCHVISION and not is_torchvision_available():
        return by_rule(name, rows)
    words = processor(name)
    texts = ["look" + f" {PLACEHOLDER.get(name, IMAGE)} look" * len(row) + " look" for row in rows]
    images = [[picture(size) for size in row] for row in rows]
    if name == "aya_vision":
        images = [image for row in images for image in row]  # type: ignore[misc]
    return words(images=images, text=texts, return_tensors="pt", padding=True)


def layout_of(name: str, inputs: Any) -> PromptLayout:
    image_inputs = ImageInputs(config(name), inputs["input_ids"], inputs)
    return prompt_layout(family_of(config(name)), image_inputs, inputs["attention_mask"])


@pytest.mark.parametrize("name", MAKERS)
def test_tokens_of_odd_sizes(name: str) -> None:
    inputs = processed(name, [[size] for size in SIZES])
    layout = layout_of(name, inputs)
    is_image = inputs["input_ids"] == config(name).image_token_id
    assert torch.equal(layout.is_patch | (layout.is_filler & is_image), is_image)
    assert all(len(grids) == 1 for grids in layout.grids)
    if name in NEEDS_TORCHVISION and not is_torchvision_available():
        counts = [len(RULES[name](size)[0]) for size in SIZES]
    elif hasattr(processor(name), "_get_num_multimodal_tokens"):
        counts = processor(name)._get_num_multimodal_tokens(image_sizes=SIZES)["num_image_tokens"]
    else:
        return  # the ids are the count: nothing else tells it
    look = torch.isin(inputs["input_ids"], torch.tensor([id_of("look"), id_of("<s>")]))
    # Some count image tokens alone, others the markers that stand for the image as well.
    written = (inputs["attention_mask"].bool() & ~look).sum(1).tolist()
    places = range(len(SIZES))
    if name == "mistral3":  # its count takes a picture one pixel high for one with its channels in front
        places = range(1, len(SIZES) - 1)
    found = [counts[place] for place in places]
    images = is_image.sum(1).tolist()
    assert found in ([written[place] for place in places], [images[place] for place in places])
    assert [grid.tokens for (grid,) in layout.grids] == images


@pytest.mark.parametrize("name", MAKERS)
def test_several_pictures_in_a_prompt(name: str) -> None:
    rows = [ROWS[0], ROWS[2]] if name == "paligemma" else ROWS  # which takes no prompt without a picture
    inputs = processed(name, rows)
    layout = layout_of(name, inputs)
    assert [len(grids) for grids in layout.grids] == [len(row) for row in rows]
    alone = {size: layout_of(name, processed(name, [[size]])).grids[0][0] for row in rows for size in row}
    for row, grids in zip(rows, layout.grids):
        assert [alone[size] for size in row] == list(grids)
    assert bool(layout.is_pad[0].any())


def test_llama4_tiles_are_arranged_as_its_separators_say() -> None:
    layout = layout_of("llama4", by_rule("llama4", [[size] for size in SIZES]))
    for size, (grid,) in zip(SIZES, layout.grids):
        words = RULES["llama4"](size)[0]
        rows = words.count("<|tile_y_separator|>")
        tiles = [(block.tile_row, block.tile_col) for block in grid.blocks if block.kind == "tile"]
        cols = len(tiles) // max(rows, 1)
        assert words.count("<|tile_x_separator|>") == rows * max(cols - 1, 0)
        assert tiles == [(row, col) for row in range(rows) for col in range(cols)]


@pytest.mark.parametrize("name", ["smolvlm", "idefics3"])
def test_tiles_are_arranged_as_the_processor_says(name: str) -> None:
    layout = layout_of(name, processed(name, [[size] for size in SIZES]))
    for size, (grid,) in zip(SIZES, layout.grids):
        _, rows, cols = processor(name).image_processor.get_number_of_image_patches(*size)
        tiles = [(block.tile_row, block.tile_col) for block in grid.blocks if block.kind == "tile"]
        assert tiles == [(row, col) for row in range(rows) for col in range(cols)]


@pytest.mark.parametrize("name", ["ovis2"])
def test_ovis2_tiles_are_arranged_as_its_processor_says(name: str) -> None:
    images = [[picture(size)] for size in SIZES]
    arranged = processor(name).image_processor(images, return_tensors="pt")["grids"].tolist()
    layout = layout_of(name, processed(name, [[size] for size in SIZES]))
    for (rows, cols), (grid,) in zip(arranged, layout.grids):
        tiles = [(block.tile_row, block.tile_col) for block in grid.blocks if block.kind == "tile"]
        assert tiles == (
            [(row, col) for row in range(rows) for col in range(cols)] if rows * cols > 1 else []
        )


@pytest.mark.skipif(not is_torchvision_available(), reason="these processors need torchvision")
@pytest.mark.parametrize("name", [name for name in NEEDS_TORCHVISION if name in MAKERS])
def test_rules_are_the_processors_own(name: str) -> None:
    inputs = processed(name, [[size] for size in SIZES])
    for size, ids, mask in zip(SIZES, inputs["input_ids"], inputs["attention_mask"]):
        words = tokenizer().convert_ids_to_tokens(ids[mask.bool()])
        assert [word for word in words if word not in ("look", "<s>")] == RULES[name](size)[0]
