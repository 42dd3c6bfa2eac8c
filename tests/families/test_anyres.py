"""Grids of any resolution against transformers' own unpadding, and newlines where a grid has them or has not."""

import pytest
import torch
from transformers.models.llava_next.modeling_llava_next import unpad_image

from lvlm_attn.errors import LvlmAttnError, UnsupportedError
from lvlm_attn.families import ImageInputs
from lvlm_attn.families.anyres import base_block, grid_of_features, shrunk, unpadded
from lvlm_attn.families.internvl import grid_of_tiles, grids, tile_side
from lvlm_attn.layout.prompt import Block, ImageGrid
from tests.tiny import FIRST_WORD, IMAGE, tiny_config

ODD_SIZES = [
    (352, 748),
    (748, 352),
    (1, 999),
    (999, 1),
    (336, 336),
    (333, 1001),
    (127, 1023),
    (480, 640),
    (1024, 7),
]


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
@pytest.mark.parametrize("grid", [(48, 48), (24, 48), (48, 24), (24, 96), (72, 24), (54, 54)], ids=str)
def test_what_is_left_of_a_grid_is_what_transformers_cuts_out(size, grid):
    left = unpad_image(torch.zeros(1, *grid), size)
    assert unpadded(size, *grid) == tuple(left.shape[1:])


def test_a_quotient_that_floats_round_down():
    """748 * (24 / 748) is a hair below 24, and has to count as 24."""
    for height in range(1, 800, 7):
        for width in (352, 748, 749, 1001):
            left = unpad_image(torch.zeros(1, 24, 24), (height, width))
            assert unpadded((height, width), 24, 24) == tuple(left.shape[1:]), (height, width)


def test_a_grid_is_scaled_down_only_well_above_the_limit():
    assert shrunk(27 * 3, 27 * 3, 27, 9) == (81, 81)
    assert shrunk(89, 89, 27, 9) == (89, 89)  # 1.099 times too long
    assert shrunk(90, 90, 27, 9) == (80, 80)  # 1.11 times; 81 but for rounding, as in transformers
    assert shrunk(27, 27 * 12, 27, 9) == (23, 280)


def features(kinds, hidden=4):
    """One vector for each letter: `n` is the newline, anything else a patch of its own."""
    generator = torch.Generator().manual_seed(0)
    newline = torch.randn(hidden, generator=generator)
    rows = [newline if kind == "n" else torch.randn(hidden, generator=generator) for kind in kinds]
    return torch.stack(rows), newline


def test_newlines_end_the_rows():
    config = tiny_config("llava_next")
    base = base_block(config)
    first = "p" * base.tokens

    def grid(tail, with_newline=True):
        found, newline = features(first + tail)
        return grid_of_features(found, newline if with_newline else None, config)

    assert grid("") == ImageGrid((base,))
    assert grid("n") == ImageGrid((base,), trailing_fillers=1)
    assert grid("ppnppn") == ImageGrid((base, Block(2, 2, "tiles", newline=True)))
    assert grid("pppn") == ImageGrid((base, Block(1, 3, "tiles", newline=True)))
    assert grid("pnpnpn") == ImageGrid((base, Block(3, 1, "tiles", newline=True)))
    for tail in ("p", "pp", "np", "ppnpp", "ppnpn", "pnppn", "npnp", "ppnnpp", "pnnp"):
        with pytest.raises(UnsupportedError, match="rows that end in the newline"):
            grid(tail)
    for tail in ("n", "ppnppn"):
        with pytest.raises(UnsupportedError, match=f"{base.tokens + len(tail)} tokens"):
            grid(tail, with_newline=False)
    with pytest.raises(UnsupportedError, match=f"{base.tokens - 1} tokens"):
        grid_of_features(*features(first[1:]), config)


def internvl_inputs(runs, **call):
    """Ids with runs of so many image tokens, and what the forward was given."""
    config = tiny_config("internvl")
    ids = [FIRST_WORD]
    for count in runs:
        ids += [IMAGE] * count + [FIRST_WORD]
    return ImageInputs(config=config, input_ids=torch.tensor([ids]), call=call)


def test_tiles_are_as_many_as_were_encoded():
    size = tile_side(internvl_inputs([]))
    tokens = size[0] * size[1]
    want = [grid_of_tiles(1, *size), grid_of_tiles(3, *size)]
    ids = [tokens, 3 * tokens]
    assert grids(internvl_inputs(ids)) == want
    assert grids(internvl_inputs(ids, pixel_values=torch.zeros(4, 3, 8, 8))) == want
    encoded = {"image": [torch.zeros(tokens, 4)] * 4}
    assert grids(internvl_inputs(ids, mm_encoder_outputs=encoded)) == want
    # A chunk has the features of its own image tokens, in one piece.
    chunk = {"image": [torch.zeros(4 * tokens, 4)]}
    assert grids(internvl_inputs(ids, mm_encoder_outputs=chunk)) == want
    for call in (
        {"pixel_values": torch.zeros(3, 3, 8, 8)},
        {"mm_encoder_outputs": {"image": [torch.zeros(tokens, 4)] * 3}},
        {"mm_encoder_outputs": {"image": [torch.zeros(3 * tokens, 4)]}},
        {"mm_encoder_outputs": {"image": [torch.zeros(2 * tokens, 4)] * 2}},
        {"mm_encoder_outputs": {"image": [torch.zeros(4 * tokens, 4), torch.zeros(tokens, 4)]}},
    ):
        with pytest.raises(LvlmAttnError, match="image tokens for 4 tiles in 2 images"):
            grids(internvl_inputs(ids, **call))
    with pytest.raises(UnsupportedError, match="no whole number of"):
        grids(internvl_inputs([tokens, tokens + 1]))
