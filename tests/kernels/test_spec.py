"""What a call is described by, piece by piece: columns, groups, classes, thresholds, devices; by hand and by loops."""

import math

import pytest
import torch
from hypothesis import given

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.kernels.reference import attention
from lvlm_attn.kernels.spec import (
    Amplification,
    Geometry,
    Redistribution,
    amplified,
    at_columns,
    class_indicator,
    redistribution_gains,
)
from lvlm_attn.kernels.visibility import ALL, Visibility, _on_device, allowed_keys
from tests.fuzzing import sized
from tests.kernels.test_visibility import cases

CPU = torch.device("cpu")


@sized(60)
@given(cases())
def test_columns_that_are_asked_about_are_those_of_the_whole(case):
    batch, geometry, items, seed = case
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(geometry.start, geometry.length).expand(batch, -1)
    rows = torch.randperm(geometry.queries, generator=generator)
    whole, bias = allowed_keys(items, geometry, index[:, rows], dtype=torch.float64)
    causal = geometry.may_attend(index[:, rows])
    shared = torch.randperm(geometry.keys, generator=generator)[: 1 + geometry.keys // 2]
    for columns in (shared, torch.stack([shared.roll(b) for b in range(batch)])):
        each = columns.expand(batch, -1)[:, None].expand(-1, geometry.queries, -1)
        got, got_bias = allowed_keys(items, geometry, index[:, rows], dtype=torch.float64, columns=columns)
        assert torch.equal(got, whole.gather(2, each))
        if bias is None:
            assert got_bias is None
        else:
            assert torch.equal(got_bias, bias.gather(2, each))
        picked = geometry.may_attend(index[:, rows], columns)
        if causal is None:
            assert picked is None
        else:
            assert torch.equal(picked.expand(batch, -1, -1), causal.expand(batch, -1, -1).gather(2, each))


@sized(60)
@given(cases())
def test_a_mask_of_the_models_own_is_bounded_by_the_earlier_reach_both_ways(case):
    batch, geometry, items, seed = case
    own = (
        torch.rand(batch, geometry.queries, geometry.keys, generator=torch.Generator().manual_seed(seed))
        < 0.7
    )
    index = torch.arange(geometry.start, geometry.length).expand(batch, -1)
    got, _ = allowed_keys(items, geometry, index, own)
    for b in range(batch):
        for row in range(geometry.queries):
            for column in range(geometry.keys):
                query, key = geometry.start + row, column + geometry.first_key
                want = bool(own[b, row, column])
                unlocked = False
                for item in items:
                    known = item.group[b].tolist()
                    q, k = (known[place] if place < len(known) else 0 for place in (query, key))
                    if query != key:
                        want &= abs(query - key) <= item.earlier[q][k]
                        want &= item.predicate is None or bool(item.predicate(query, key))
                    unlocked |= item.later is not None and 0 < key - query <= item.later[q][k]
                is_there = key < geometry.length
                if is_there and geometry.is_valid is not None:
                    is_there = bool(geometry.is_valid[b, key])
                assert bool(got[b, row, column]) == (want or (unlocked and is_there)), (b, row, column)


def test_a_geometry_by_hand():
    grown = Geometry(4, 2, 9)
    assert (grown.length, grown.first_key) == (6, 0)
    assert grown.to_columns(torch.tensor([[1, 2, 3, 4, 5]])).tolist() == [[1, 2, 3, 4, 5, 0, 0, 0, 0]]
    # What is said of positions that are not yet written is not told.
    assert Geometry(0, 2, 5).to_columns(torch.arange(1, 6)[None]).tolist() == [[1, 2, 0, 0, 0]]
    slid = Geometry(4, 2, 3)
    assert (slid.length, slid.first_key) == (6, 3)
    assert slid.to_columns(torch.arange(8)[None]).tolist() == [[3, 4, 5]]
    assert slid.key_index(None, CPU).tolist() == [[[3, 4, 5]]]
    assert slid.key_index(torch.tensor([2, 0]), CPU).tolist() == [[[5, 3]]]
    assert slid.key_index(torch.tensor([[2], [0]]), CPU).tolist() == [[[5]], [[3]]]
    values = torch.tensor([[10, 11, 12], [20, 21, 22]])
    assert at_columns(values, None) is values
    assert at_columns(values, torch.tensor([2, 0])).tolist() == [[12, 10], [22, 20]]
    assert at_columns(values, torch.tensor([[2], [0]])).tolist() == [[12], [20]]


def test_only_a_single_query_that_attends_to_every_key_needs_no_mask():
    index = torch.tensor([[5]])
    assert Geometry(5, 1, 6).may_attend(index) is None
    assert Geometry(5, 1, 8).may_attend(index).tolist() == [[[True] * 6 + [False] * 2]]
    assert Geometry(5, 1, 6, window=2).may_attend(index).tolist() == [[[False] * 4 + [True] * 2]]
    padded = Geometry(5, 1, 6, torch.tensor([[False] + [True] * 5]))
    assert padded.may_attend(index).tolist() == [[[False] + [True] * 5]]
    two = Geometry(0, 2, 2).may_attend(torch.tensor([[0, 1]]))
    assert two.tolist() == [[[True, False], [True, True]]]


def test_queries_that_a_table_touches_by_hand():
    group = torch.tensor([[0, 1, 2, 3, 0]])
    # Group 0 attends as causality says, 1 to less, 2 to itself alone, 3 ahead.
    table = ((ALL,) * 4, (ALL, 5, ALL, ALL), (0,) * 4, (ALL,) * 4)
    ahead = ((0,) * 4, (0,) * 4, (0,) * 4, (1, 0, 0, 0))
    item = Visibility(group, table, ahead)
    assert item.groups == 4
    assert [item.is_plain(g) for g in range(4)] == [True, False, False, False]
    assert [item.reads_all_earlier(g) for g in range(4)] == [True, False, False, True]
    assert [item.is_self_only(g) for g in range(4)] == [False, False, True, False]
    assert item.touched(Geometry(0, 5, 5)).tolist() == [[False, True, True, True, False]]
    assert item.touched(Geometry(3, 4, 7)).tolist() == [[True, False, False, False]]
    assert item.touched(Geometry(5, 2, 7)) is None
    assert item.touched(Geometry(4, 2, 6)).tolist() == [[False, False]]
    assert item.self_only(Geometry(0, 5, 5)).tolist() == [[False, False, True, False, False]]
    assert item.self_only(Geometry(4, 2, 6)).tolist() == [[False, False]]
    assert item.self_only(Geometry(5, 2, 7)) is None
    assert Visibility(group, table[:2] + table[:1] + table[3:], ahead).self_only(Geometry(0, 5, 5)) is None
    mixed = Visibility(group, ((0, ALL), (0, 0)), ((0, 0), (0, 3)))
    assert [mixed.is_self_only(g) for g in range(2)] == [False, False]
    generated = Visibility(group % 2, ((0, ALL), (ALL, ALL)))
    assert generated.touched(Geometry(5, 2, 7)).tolist() == [[True, True]]
    alone = Visibility(torch.tensor([[0, 0]]), ((0,),), ((3,),))
    assert not alone.is_self_only(0)
    assert alone.self_only(Geometry(0, 2, 2)) is None


def test_queries_that_a_predicate_touches_are_told_by_the_method():
    touches = torch.tensor([[False, True, False, True]])
    item = Visibility(
        torch.zeros(1, 4, dtype=torch.int32), ((ALL,),), predicate=lambda q, k: q - k != 1, touches=touches
    )
    assert item.touched(Geometry(0, 4, 4)).tolist() == touches.tolist()
    assert item.touched(Geometry(3, 3, 6)).tolist() == [[True, False, False]]
    assert item.touched(Geometry(4, 1, 5)).tolist() == [[False]]
    assert Visibility.of_queries(item.group, Geometry(2, 4, 6)).dtype == torch.long
    assert Visibility.of_queries(touches, Geometry(1, 2, 3)).tolist() == [[True, False]]


def test_a_row_without_keys_is_zero_and_a_strength_keeps_float64():
    query = torch.randn(1, 2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    blind = Geometry(0, 3, 3, torch.tensor([[False, False, True]]))
    output, weights = attention(query, query, query, scaling=0.5, geometry=blind)
    assert not output[:, :, :2].any()
    assert not weights[:, :, :2].any()
    assert weights[0, :, 2].tolist() == [[0, 0, 1]] * 2
    ahead = Visibility(torch.tensor([[0, 0, 0]]), ((ALL,),), ((ALL,),), strength=0.3)
    _, weights = attention(query, query, query, scaling=0.0, geometry=Geometry(0, 3, 3), visibility=[ahead])
    want = torch.tensor([[1 / 1.6, 0.3 / 1.6, 0.3 / 1.6]] * 2, dtype=torch.float64)
    torch.testing.assert_close(weights[0, :, 0], want, rtol=0, atol=1e-15)


def test_small_tables_serve_gradients_wherever_they_were_made():
    _on_device.cache_clear()
    with torch.inference_mode():
        assert not _on_device(((0, 1), (1, 0)), CPU).is_inference()


def test_thresholds_of_a_redistribution_count_as_reached():
    def changed(masses, **given):
        settings = {"removed_fraction": 0.5, "rho": 0.5, "mass_floor": 0.25, **given}
        spec = Redistribution(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **settings)
        gains, is_changed = redistribution_gains(torch.tensor([[[masses]]], dtype=torch.float64), spec)
        return gains[0, 0, 0].tolist() if bool(is_changed) else None

    # text, sinks of text, patches, sinks among patches
    assert changed([0.5, 0.25, 0.125, 0.125]) == [1.0, 0.5, 2.5, 0.5]
    assert changed([0.5, 0.25, 0.0625, 0.125]) is None  # less on patches than the floor
    assert changed([0.5, 0.25, 0.125, 0.25]) is None  # less than rho of it on plain patches
    assert changed([1.0, 0.0, 0.0, 0.0], rho=0.0, mass_floor=0.0) is None  # nowhere to move it
    assert changed([0.5, 0.25, 0.25, 0.0], removed_fraction=1.0) == [1.0, 0.0, 2.0, 0.0]
    indicator = class_indicator(torch.tensor([[0, 3, 2]]), torch.float64)
    assert indicator.dtype == torch.float64
    assert indicator.tolist() == [[[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]]


def test_factors_are_kept_in_single_precision_and_per_head():
    rows = torch.ones(2, 3, dtype=torch.bool)
    half = torch.tensor([[0.5, 2.0, 1.0]] * 2, dtype=torch.float16)
    made = Amplification.multiplying(rows, half, torch.tensor([1.0, 0.0]))
    assert made.bias.dtype == torch.float32
    assert made.bias[0].tolist() == pytest.approx([-math.log(2), math.log(2), 0])
    assert made.per_head(2).tolist() == [[1, 0], [1, 0]]
    assert Amplification(rows).per_head(2).tolist() == [[1, 1], [1, 1]]
    assert Amplification(rows, heads=torch.tensor([[1.0], [2.0]])).per_head(1).tolist() == [[1], [2]]
    for wrong in (torch.ones(3), torch.ones(1, 2), torch.ones(2, 3)):
        with pytest.raises(LvlmAttnError, match=r"shape .*; give one factor for each of the 2 heads"):
            Amplification(rows, heads=wrong).per_head(2)
    for least in (-1.0, 0.0):
        with pytest.raises(LvlmAttnError, match=rf"is {least}, and must be above 0"):
            Amplification.multiplying(rows, torch.tensor([[1.0, least]]))


@pytest.mark.parametrize("field", ["gain", "bias"])
@pytest.mark.parametrize("heads", [None, torch.tensor([1.0, 0.5])])
def test_amplified_scores_keep_their_precision(field, heads):
    scores = torch.tensor([[[[0.5, -torch.inf]], [[0.25, 1.0]]]], dtype=torch.float16)
    spec = Amplification(torch.ones(1, 1, dtype=torch.bool), **{field: torch.ones(1, 2)}, heads=heads)
    got = amplified(scores, spec, Geometry(1, 1, 2), spec.is_touched)
    size = scores.abs() if field == "gain" else torch.ones_like(scores)
    factor = torch.ones(2, dtype=torch.float16) if heads is None else heads.half()
    assert got.dtype == torch.float16
    assert torch.equal(got, torch.where(scores > -torch.inf, scores + factor[:, None, None] * size, scores))


def test_an_amplification_without_gain_or_bias_changes_nothing():
    scores = torch.tensor([[[[0.5, -torch.inf]]]])
    spec = Amplification(torch.ones(1, 1, dtype=torch.bool), heads=torch.tensor([3.0]))
    assert torch.equal(amplified(scores, spec, Geometry(1, 1, 2), spec.is_touched), scores)


@pytest.mark.parametrize("shape", [(5,), (2, 5), (3, 2, 5), (4, 3, 2, 5)])
@pytest.mark.parametrize("shared", [False, True])
def test_columns_are_picked_per_sample_or_for_all(shape, shared):
    batch, keys = 3, shape[-1]
    values = torch.rand(1 if shared else batch, *shape[:-1], keys)
    assert at_columns(values, None) is values
    every = torch.tensor([4, 0, 0])
    assert torch.equal(at_columns(values, every), values[..., [4, 0, 0]])
    own = torch.tensor([[1, 2], [4, 0], [3, 3]])
    picked = at_columns(values, own)
    assert picked.shape == (batch, *shape[:-1], 2)
    for sample in range(batch):
        assert torch.equal(picked[sample], values[0 if shared else sample][..., own[sample]])


def test_rows_whose_scores_change_are_touched_ones_in_heads_that_are():
    is_touched = torch.tensor([[True, False, True], [False, True, True]])
    index = torch.tensor([[2, 1], [0, 2]])
    per_head = torch.tensor([[0.0, 1.0, 0.5, -1.0], [1.0, 0.0, 0.0, 2.0]])
    for heads in (None, per_head, per_head[0]):
        spec = Amplification(is_touched, gain=torch.ones(2, 3), heads=heads)
        found = spec.changes(index, 4)
        assert found.shape == (2, 4, 2)
        for sample in range(2):
            for head in range(4):
                factor = 1.0 if heads is None else heads.expand(2, 4)[sample, head]
                for row in range(2):
                    want = bool(is_touched[sample, index[sample, row]]) and float(factor) != 0
                    assert bool(found[sample, head, row]) == want


def test_what_is_made_lies_where_the_tensors_lie():
    """Tensors without data stand for those of another device: an operation of both is an error."""
    meta = torch.device("meta")
    geometry = Geometry(2, 3, 5, torch.ones(1, 5, dtype=torch.bool), 4)
    query, key = torch.empty(1, 4, 3, 8, device=meta), torch.empty(1, 2, 5, 8, device=meta)
    rows, positions = torch.ones(1, 3, dtype=torch.bool, device=meta), torch.ones(1, 5, device=meta)
    group = torch.zeros(1, 5, dtype=torch.long)
    mask = Visibility(group, ((ALL, 2), (0, ALL)), ((0, 0), (1, 0)), strength=0.5, touches=group > 0)
    amplification = Amplification(rows, positions, positions, torch.ones(4, device=meta), 1.5)
    move = Redistribution(positions.long(), rows, 0.5, 0.5, 0.5)
    output, weights = attention(
        query, key, key, scaling=1.0, geometry=geometry,
        visibility=[mask], amplification=[amplification], redistribution=move,
    )  # fmt: skip
    assert (output.device, weights.device) == (meta, meta)
    assert (output.shape, weights.shape) == (query.shape, (1, 4, 3, 5))
    attention(query[:, :, :1], key, key, scaling=1.0, geometry=Geometry(4, 1, 5), visibility=[mask])
    assert Amplification(rows).per_head(4).device == meta
    there = Visibility(group.to(meta), mask.earlier, mask.later, touches=group > 0)
    assert there.touched(Geometry(2, 3, 5)).device == meta
    alone = Visibility(group.to(meta), ((0, 0), (ALL, 0)))
    assert alone.self_only(Geometry(2, 3, 5)).device == meta


@pytest.mark.parametrize("name", ["removed_fraction", "rho", "mass_floor"])
@pytest.mark.parametrize("value", [1.5, 2.5, -0.1, math.nan, "0.5", None])
def test_settings_of_a_redistribution_are_shares(name, value):
    settings = {"removed_fraction": 0.5, "rho": 0.0, "mass_floor": 1, name: value}
    with pytest.raises(
        LvlmAttnError, match=f"^Redistribution: {name}={value!r} must be a number from 0 to 1"
    ):
        Redistribution(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), **settings)


@pytest.mark.parametrize("cap", [0, -1.0, math.nan, "2"])
def test_a_cap_of_heads_is_above_0(cap):
    with pytest.raises(LvlmAttnError, match=f"^Amplification: head_cap={cap!r} must be a number above 0"):
        Amplification(torch.ones(1, 1, dtype=torch.bool), head_cap=cap)
    assert Amplification(torch.ones(1, 1, dtype=torch.bool), head_cap=0.5).head_cap == 0.5
