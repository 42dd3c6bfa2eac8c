"""A cache with room holds what transformers' own holds, whatever is done to it between steps."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer, StaticCache

from lvlm_attn.decoding.roomy_cache import MOST_ROOM, RoomyLayer, give_room


def steps(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(torch.randn(2, 3, length, width, generator=generator) for width in (5, 7)) for length in lengths
    ]


def same(layer, plain):
    assert layer.get_seq_length() == plain.get_seq_length()
    return torch.equal(layer.keys, plain.keys) and torch.equal(layer.values, plain.values)


@pytest.mark.parametrize("room", [0, 1, 3, 100])
def test_holds_what_a_plain_layer_holds(room):
    layer, plain = RoomyLayer(room), DynamicLayer()
    for new in steps([4, 1, 1, 2, 1, 5, 1]):
        got, want = layer.update(*new), plain.update(*new)
        assert all(torch.equal(one, other) for one, other in zip(got, want))
        assert same(layer, plain)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda layer: layer.reorder_cache(torch.tensor([1, 1])), id="reorder"),
        pytest.param(lambda layer: layer.reorder_cache(torch.tensor([1, 0, 1])), id="more rows"),
        pytest.param(lambda layer: (layer.crop(-2), layer.reorder_cache(torch.tensor([1, 0]))), id="both"),
        pytest.param(lambda layer: layer.crop(-2), id="crop"),
        pytest.param(lambda layer: layer.crop(0), id="no crop"),
        pytest.param(lambda layer: layer.batch_repeat_interleave(2), id="repeat"),
        pytest.param(lambda layer: layer.batch_select_indices(torch.tensor([1])), id="select"),
        pytest.param(lambda layer: layer.offload(), id="offload"),
    ],
)
def test_changes_of_the_cache_are_kept(change):
    layer, plain = RoomyLayer(8), DynamicLayer()
    for new in steps([4, 1]):
        layer.update(*new)
        plain.update(*new)
    for one in (layer, plain):
        change(one)
    assert same(layer, plain)
    rows = plain.keys.shape[0]
    for new in steps([1, 2, 1], seed=1):
        new = [tensor[:1].expand(rows, -1, -1, -1) for tensor in new]
        layer.update(*new)
        plain.update(*new)
        assert same(layer, plain)


def test_what_was_returned_stays_as_it_was():
    layer = RoomyLayer(8)
    first = layer.update(*steps([4])[0])[0]
    before = first.clone()
    layer.update(*steps([3], seed=1)[0])
    assert torch.equal(first, before)


def test_a_step_does_not_copy_the_cache():
    layer = RoomyLayer(8)
    place = layer.update(*steps([4])[0])[0].data_ptr()
    assert all(layer.update(*new)[0].data_ptr() == place for new in steps([1] * 8))
    assert layer.update(*steps([1])[0])[0].data_ptr() != place


def test_neither_do_beams_and_going_back():
    layer = RoomyLayer(8)
    layer.update(*steps([4])[0])
    layer.reorder_cache(torch.tensor([1, 0]))
    place = layer.keys.data_ptr()
    layer.update(*steps([2])[0])
    layer.crop(-1)
    layer.update(*steps([1])[0])
    assert layer.keys.data_ptr() == place


def test_only_plain_empty_layers_get_room():
    from transformers import LlamaConfig

    config = LlamaConfig(num_hidden_layers=3, hidden_size=8, num_attention_heads=2, intermediate_size=8)
    cache = DynamicCache(config=config)
    cache.layers[1].update(*steps([4])[0])
    give_room(cache, 10_000)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer, DynamicLayer, RoomyLayer]
    cache.layers[0].update(*steps([4])[0])
    assert cache.layers[0]._buffers[0].shape[-2] == 4 + MOST_ROOM
    static = StaticCache(config=config, max_cache_len=8)
    kinds = [type(layer) for layer in static.layers]
    give_room(static, 10)
    assert [type(layer) for layer in static.layers] == kinds
    give_room(None, 10)
