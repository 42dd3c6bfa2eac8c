"""Views against their formulas written out with loops, and what each needs."""

import numpy as np
import pytest
import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.views import contrasted, find_sinks, relative, rollout, sink_columns, without_keys
from tests.maps.made import hand_made, toy_maps


def test_sink_columns_by_loops():
    maps = hand_made(layers=1)
    weights = maps.weights[0].clone()
    weights[..., 3] += 0.5
    rows, keys = weights.shape[2:]
    visible = torch.zeros(1, rows, keys, dtype=torch.bool)
    for row, query in enumerate(maps.rows[0].tolist()):
        visible[0, row, : query + 1] = True
    found = sink_columns(weights, visible, factor=4, share=0.9)[0]
    for key in range(keys):
        able = [row for row in range(rows) if visible[0, row, key]]
        high = [
            row for row in able if float(weights[0, :, row, key].mean()) >= 4 / int(visible[0, row].sum())
        ]
        assert bool(found[key]) == (bool(able) and len(high) >= 0.9 * len(able))
    assert bool(found[3])
    assert int(found.sum()) == 1


def test_formulas():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 2, 3, 5, generator=generator)
    removed = torch.tensor([[False, True, False, False, True]])
    left = without_keys(weights, removed)
    assert not left[..., [1, 4]].any()
    assert torch.equal(left[..., [0, 2, 3]], weights[..., [0, 2, 3]])
    is_row = torch.tensor([[True, True, False]])
    new = relative(weights[:, :, :1], weights, is_row)
    assert torch.allclose(new[0, 1, 0], weights[0, 1, 0] - (weights[0, 1, 0] + weights[0, 1, 1]) / 2)
    neutral = torch.rand(1, 2, 5, generator=generator)
    heads = weights[0, :, 2, 3].mean() / (neutral[0, :, 3].mean() + 0.5)  # not the mean of two ratios
    assert torch.allclose(contrasted(weights, neutral, 0.5)[0, 0, 2, 3], heads)


def test_rollout_is_the_product_of_its_layers():
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(4, 4, generator=generator).tril().double() for _ in range(3)]
    layers = [layer / layer.sum(-1, keepdim=True) for layer in layers]
    half = [(torch.eye(4).double() + layer) / 2 for layer in layers]
    assert torch.allclose(rollout(layers), half[2] @ half[1] @ half[0])
    assert torch.allclose(rollout(layers).sum(-1), torch.ones(4).double())


def test_rollout_of_the_toy():
    maps = toy_maps(rows="all")
    rolled = maps.view("rollout")
    assert rolled.layers == ("rollout",)
    assert torch.allclose(rolled.weights["rollout"].sum(-1), torch.ones(1, 1, len(maps)), atol=1e-5)
    word = maps["car"].view("rollout")
    assert np.allclose(word.pixels(), rolled["car"].pixels())


def test_relative_compares_with_all_rows_whether_a_word_was_chosen_before_or_after():
    maps = hand_made()
    first, later = maps["dog"].view("relative"), maps.view("relative")["dog"]
    assert torch.equal(first.weights[0], later.weights[0])
    assert np.allclose(maps.view("relative").mean(), 0, atol=1e-8)
    layered = maps.layer(1).head(0)["dog"].view("relative")
    assert torch.allclose(layered.weights[1], maps.view("relative")["dog"].layer(1).head(0).weights[1])


def test_sinks_by_score_and_by_column():
    from dataclasses import replace

    maps = hand_made()
    scores = torch.zeros(1, maps.layout.length)
    scores[0, 4] = 25
    scored = replace(maps, sink_scores={0: scores, 1: scores * 0.5})
    sinks = find_sinks(scored)
    assert sinks[0].nonzero().tolist() == [[0, 4]]
    assert not sinks[1].any()
    assert find_sinks(scored, tau=12)[1].any()
    cleared = scored.view("no_sinks")
    assert not cleared.weights[0][..., 4].any()
    assert torch.equal(cleared.weights[1], maps.weights[1])
    assert "VAR" in cleared.meta["view_note"]
    assert maps["dog"].view("no_sinks").meta["view_note"].startswith("sinks removed (every query")


def test_contrast_of_equal_maps_is_one():
    maps = hand_made()
    ones = maps[2].view("contrast", neutral=maps[2], lam=0)
    assert np.allclose(ones.layer(0).grid()[0], 1)
    assert ones.pixels().max() == pytest.approx(1)
    assert ones.unit == "ratio to the neutral prompt"


def test_contrast_is_carves_ratio_of_mean_heads_in_every_layer():
    from lvlm_attn.maps.maps import contrast

    maps, neutral = hand_made(), hand_made(seed=2)[:1]
    asked, told = (
        np.stack([one.layer(layer).head(0, 1)["dog" if one is maps else 0].grid()[0] for layer in (0, 1)])
        for one in (maps, neutral)
    )
    shown = maps.head(0, 1)["dog"].view("contrast", neutral=neutral.head(0, 1))
    assert np.allclose(shown.grid()[0], contrast(asked, told).mean(0), rtol=1e-5)
    lone = maps.head(1)["dog"].view("contrast", neutral=neutral.head(1))
    assert lone.heads == (1,)
    with pytest.raises(LvlmAttnError, match="choose before the view"):
        shown.head(0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda maps: maps[:1].pick([0]).view("rollout"), "rows='all'"),
        (lambda maps: maps.view("contrast"), "needs maps of a neutral prompt"),
        (lambda maps: maps.view("contrast", neutral=maps.layer(0)), "other samples, layers or heads"),
        (lambda maps: maps.view("relative").view("no_sinks"), "show 'relative' already"),
        (lambda maps: maps.view("relative").view("raw"), "show 'relative' already"),
    ],
)
def test_what_a_view_needs(ask, message):
    with pytest.raises(LvlmAttnError) as caught:
        ask(hand_made())
    assert message in str(caught.value)


def test_a_single_row_has_nothing_to_compare_with():
    from dataclasses import replace

    lone = replace(hand_made()[0], parent=None)
    with pytest.raises(LvlmAttnError, match="more than one row"):
        lone.view("relative")
    with pytest.raises(LvlmAttnError, match=r"cannot be told from 1 row"):
        lone.view("no_sinks")
    assert lone.view("raw") is lone
