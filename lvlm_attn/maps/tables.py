"""Recorded attention as lists and data frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.layout.grids import Kind
from lvlm_attn.maps.places import Place, positions_of

if TYPE_CHECKING:
    from lvlm_attn.maps.attention_maps import AttentionMaps


@dataclass(frozen=True)
class KeyWeight:
    """A key, and the weight on it.

    Attributes:
        text: the token's text.
        position: where it stands in the padded sequence.
        kind: `"text"` of the prompt, or `"generated"`.
        weight: mean over layers, heads and rows.
    """

    text: str
    position: int
    kind: str
    weight: float


@dataclass(frozen=True)
class RowWeight:
    """A row, and its weight on some place.

    Attributes:
        text: the token that the row is about.
        row: the number of the row.
        position: where the token stands in the padded sequence.
        weight: mean over layers and heads, summed over the keys of the place.
    """

    text: str
    row: int
    position: int
    weight: float


def text_weights(maps: AttentionMaps) -> list[KeyWeight]:
    """See `AttentionMaps.text`."""
    mean, kinds = maps.mean(), maps.layout.kind[0]
    return [
        KeyWeight(maps.text_of(place), place, Kind(int(kinds[place])).name.lower(), float(mean[place]))
        for place in maps.layout.is_text[0].nonzero().flatten().tolist()
    ]


def row_weights(maps: AttentionMaps, place: Place) -> list[RowWeight]:
    """See `AttentionMaps.attended_by`."""
    maps._lone("attended_by")
    keys = positions_of(maps, place)
    stacked = np.stack([value[0][:, :, keys].double().sum(-1).mean(0) for value in maps.weights.values()])
    means = stacked.mean(0)
    return [
        RowWeight(maps.text_of(position), row, position, float(means[row]))
        for row, position in enumerate(maps.targets[0].tolist())
        if position >= 0
    ]


def to_pandas(maps: AttentionMaps, limit: int) -> Any:
    """See `AttentionMaps.to_pandas`."""
    try:
        import pandas as pd
    except ImportError as error:
        raise LvlmAttnError("to_pandas needs pandas; install it with `pip install pandas`.") from error
    heads = next(iter(maps.weights.values())).shape[1] if maps.weights else 0
    lines = len(maps.weights) * heads * int((maps.rows >= 0).sum() * maps.layout.length)
    if lines > limit:
        raise LvlmAttnError(
            f"These maps would make {lines:,} lines, above limit={limit:,}; choose words, layers or heads first."
        )
    frames = [
        _frame(pd, maps.sample(index) if maps.batch > 1 else maps, index) for index in range(maps.batch)
    ]
    return pd.concat(frames, ignore_index=True)


def _frame(pd: Any, maps: AttentionMaps, sample: int) -> Any:
    layout = maps.layout
    valid = layout.is_valid[0].nonzero().flatten().numpy()
    keys = pd.DataFrame(
        {
            "key": valid,
            "kind": [Kind(int(kind)).name.lower() for kind in layout.kind[0, valid]],
            "key_text": [maps.text_of(place) for place in valid.tolist()],
            "image": layout.image[0, valid].numpy(),
            "block": layout.block[0, valid].numpy(),
            "patch_row": layout.row[0, valid].numpy(),
            "patch_col": layout.col[0, valid].numpy(),
        }
    )
    count = len(valid)
    pieces = []
    for layer, weights in maps.weights.items():
        for index in range(weights.shape[1]):
            for row in range(len(maps)):
                piece = keys.copy(deep=False)
                piece["weight"] = weights[0, index, row, valid].numpy()
                piece["row"] = np.full(count, row)
                piece["token"] = maps.text_of(int(maps.targets[0, row]))
                piece["query"] = np.full(count, int(maps.rows[0, row]))
                piece["head"] = np.full(count, maps.heads[index] if maps.heads else -1)
                piece["layer"] = layer
                pieces.append(piece)
    frame = pd.concat(pieces, ignore_index=True)
    frame.insert(0, "sample", sample)
    order = ["sample", "layer", "head", "row", "token", "query", *keys.columns, "weight"]
    return frame[order]
