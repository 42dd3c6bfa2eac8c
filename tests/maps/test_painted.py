"""One hot patch lands on its own pixels: painting them moves the embedding of that patch more than any other."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lvlm_attn.families import models
from lvlm_attn.layout.grids import Block, ImageGrid
from lvlm_attn.layout.prompt import Kind
from lvlm_attn.maps import geometry
from lvlm_attn.maps.attention_maps import AttentionMaps
from lvlm_attn.maps.onto_image import MapImage
from tests.maps.painted import canvas, change, processor, seen
from tests.tiny import ALL_NAMES, tiny_config
from tests.versions import needs_own_image_processors

pytestmark = [
    needs_own_image_processors,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SHAPES = {"square": (240, 240), "wide": (310, 120), "tall": (99, 264), "thin": (150, 1), "upright": (1, 150)}


def hot(name: str, before: Any, size: tuple[int, int], position: int, level: str) -> np.ndarray[Any, Any]:
    """`(height, width)`, True where maps say that one patch lies."""
    layout = before.layout
    weights = torch.zeros(1, 1, 1, layout.length)
    weights[..., position] = 1
    picture = Image.fromarray(canvas(size))
    image = MapImage.of(layout.grids[0][0], picture, before.config, processor(name))
    maps = AttentionMaps(
        rows=torch.tensor([[layout.length - 1]]),
        weights={0: weights},
        layout=layout,
        ids=torch.zeros(1, layout.length, dtype=torch.long),
        targets=torch.tensor([[layout.length - 1]]),
        images=((image,),),
        heads=(0,),
    )
    pixels = maps.pixels(level=level)
    if not pixels.any():
        return np.zeros(pixels.shape, dtype=bool)
    assert pixels.sum() == pytest.approx(1)
    return pixels > (1 - 1e-6) * pixels.max()  # a pixel that cells share holds less of each


def by_level(before: Any) -> dict[str, list[int]]:
    """The positions of the patches of the whole image, and of its tiles where it has some."""
    layout, grid = before.layout, before.layout.grids[0][0]
    is_patch = layout.kind[0] == Kind.PATCH
    found: dict[str, list[int]] = {}
    for position in is_patch.nonzero().flatten().tolist():
        kind = grid.blocks[int(layout.block[0, position])].kind
        is_tile = kind == "unplaced" and layout.block[0, position] < len(grid.blocks) - 1
        level = "fine" if is_tile or kind in ("tile", "tiles") else "coarse"
        found.setdefault(level, []).append(position)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALL_NAMES)
def test_painting_a_patch_moves_its_embedding_most(name: str, shape: str) -> None:
    size = SHAPES[shape]
    before = seen(name, Image.fromarray(canvas(size)))
    tried = 0
    for level, positions in by_level(before).items():
        places = {position: hot(name, before, size, position, level) for position in positions}
        shown = [position for position in positions if places[position].any()]
        for position in [*shown[:: max(1, len(shown) // 3)], shown[-1]]:
            _, moved = change(name, size, places[position])
            most = max(positions, key=moved.__getitem__)
            common = (places[most] & places[position]).sum() / (places[most] | places[position]).sum()
            assert common >= 0.5, (level, position, most)
            tried += 1
    assert tried > 2


def test_families_that_are_not_followed_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of one's own may leave open where patches lie."""
    unknown = dataclasses.replace(models()["llava"], places=False)
    monkeypatch.setattr(geometry, "models", lambda: {"llava": unknown})
    grid = ImageGrid((Block(2, 2, "base"),))
    found = MapImage.of(grid, Image.new("RGB", (9, 9)), tiny_config("llava"), object())
    assert found.levels is None
    assert "not known here" in found.reason
