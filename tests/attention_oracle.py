"""What positions of a prompt attend to, from transformers' eager weights in float64: one row, no cache, no padding."""

from functools import cache
from typing import Any

import torch

from tests.tiny import IMAGE, tiny_model


@cache
def eager_twin(name: str) -> Any:
    """The tiny model in float64 with eager attention."""
    return tiny_model(name, attn="eager").double()


def last_rows(name: str, inputs: dict[str, Any], layers: Any, tokens: Any = ()) -> Any:
    """`(layers, image tokens)`: attention of the last position, after `tokens` were added, averaged over heads."""
    model = eager_twin(name)
    ids = torch.cat((inputs["input_ids"], torch.tensor([list(tokens)], dtype=torch.long)), 1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for key, value in inputs.items():
        if key == "mm_token_type_ids":
            given[key] = (ids == IMAGE).to(value)
        elif key not in given:
            given[key] = value.double() if value.is_floating_point() else value
    with torch.no_grad():
        weights = model(**given, output_attentions=True, use_cache=False).attentions
    rows = torch.stack([weights[layer][0, :, -1].mean(0) for layer in layers])
    return rows[:, ids[0] == IMAGE].numpy()


def split_blocks(rows: Any, shapes: Any) -> list[Any]:
    """Cuts `(layers, image tokens)` into blocks; `shapes` are (rows, columns, columns of newlines)."""
    blocks, start = [], 0
    for height, width, newline in shapes:
        piece = rows[:, start : start + height * (width + newline)].reshape(
            len(rows), height, width + newline
        )
        blocks.append(piece[..., :width])
        start += height * (width + newline)
    assert start == rows.shape[1]
    return blocks


def shapes_of(request: Any, row: int) -> list[tuple[int, int, int]]:
    """Rows, columns and newlines of all blocks of all images of a row."""
    return [
        (item.rows, item.cols, int(item.newline))
        for grid in request.layout.grids[row]
        for item in grid.blocks
    ]
