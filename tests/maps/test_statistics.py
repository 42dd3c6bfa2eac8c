"""Numbers of recorded attention against sums written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.statistics import (
    class_masses,
    coco_box,
    compare,
    entropies,
    image_mass,
    pointing,
    rank_correlation,
    sink_statistics,
)
from tests.maps.made import hand_made


def test_image_mass_and_entropy_by_loops():
    maps = hand_made(batch=2)
    maps.rows[1, 4:] = -1
    mass, spread, narrow = image_mass(maps), entropies(maps), entropies(maps, on_image=True)
    for layer in range(2):
        for head in range(2):
            rows = [maps.weights[layer][0, head, row].double() for row in range(7)]
            rows += [maps.weights[layer][1, head, row].double() for row in range(4)]
            assert mass[layer, head] == pytest.approx(np.mean([float(row[2:14].sum()) for row in rows]))
            plain = [float(-(row[row > 0] * row[row > 0].log()).sum()) for row in rows]
            assert spread[layer, head] == pytest.approx(np.mean(plain))
            patches = [row[2:14] / row[2:14].sum() for row in rows]
            wanted = np.mean([float(-(row * row.log()).sum()) for row in patches])
            assert narrow[layer, head] == pytest.approx(wanted)


def test_classes_add_up_to_one():
    maps = hand_made()
    found = class_masses(maps)
    assert np.allclose(sum(found.values()), 1)
    assert found["image patches"] == pytest.approx(image_mass(maps).mean(1))
    assert found["answer"].min() > 0
    half = replace(
        maps,
        weights={key: value / 2 for key, value in maps.weights.items()},
        extra={key: torch.full(value.shape[:3], 0.5) for key, value in maps.weights.items()},
    )
    assert np.allclose(class_masses(half)["extra keys"], 0.5)
    assert np.allclose(sum(class_masses(half).values()), 1)


def test_sinks():
    maps = hand_made()
    scores = torch.zeros(1, maps.layout.length)
    scores[0, [0, 3]] = 30
    (first, second) = sink_statistics(replace(maps, sink_scores={0: scores, 1: scores * 0}))
    assert (first.patches, first.texts) == (1, 1)
    assert first.patch_mass == pytest.approx(float(maps.weights[0][..., 3].mean()))
    assert first.text_mass == pytest.approx(float(maps.weights[0][..., 0].mean()))
    assert (second.patches, second.patch_mass) == (0, 0)


def test_pointing():
    values = np.zeros((10, 10))
    values[2, 3], values[7, 7], values[0, 0] = 3, 1, -5
    assert pointing(values, [(3, 2, 4, 3)]) == pointing(values, [(3, 2, 4, 3), (0, 0, 0, 0)])
    found = pointing(values, [(6, 6, 9, 9)])
    assert (found.is_hit, found.energy, found.area) == (False, 0.25, 0.09)
    flat = pointing(np.ones((10, 10)), [(0, 0, 5, 10)])
    assert flat.energy == flat.area == 0.5
    assert pointing(np.zeros((4, 4)), [(0, 0, 2, 4)]).energy == 0.5
    with pytest.raises(LvlmAttnError, match="at least one box"):
        pointing(values, [])


def test_rank_correlation():
    a = np.arange(12.0).reshape(3, 4)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    assert rank_correlation(a, np.ones((3, 4))) == 0


def test_comparing_two_groups_of_words():
    draw = np.random.default_rng(1)
    low, high = draw.normal(0, 1, 60), draw.normal(2, 1, 60)
    found = compare(high, low)
    assert found.low < found.difference < found.high
    assert found.low > 1
    same = compare(low, low[::-1])
    assert same.low < 0 < same.high
    assert compare([1, 1], [0, 0]).low == 1
    with pytest.raises(LvlmAttnError, match="at least two words"):
        compare([1], [0, 0])


def test_words_of_one_picture_count_as_one_draw():
    """Forty words of two captions say no more than the two captions."""
    draw = np.random.default_rng(2)
    first, second = (
        draw.normal(0, 0.01, 40) + np.repeat([0, 1], 20),
        draw.normal(0, 0.01, 40) + np.repeat([1, 2], 20),
    )
    names = np.repeat(["a", "b"], 20)
    words = compare(first, second)
    pictures = compare(first, second, pictures=(names, names))
    assert words.difference == pictures.difference
    assert pictures.high - pictures.low < 0.05  # both groups move together with their picture
    apart = compare(first, second, pictures=(names, np.repeat(["c", "d"], 20)))
    assert apart.high - apart.low > 1.5 * (words.high - words.low)
    with pytest.raises(LvlmAttnError, match="one picture for each word"):
        compare(first, second, pictures=(names, names[:3]))


def test_boxes_of_coco():
    values = np.zeros((10, 10))
    values[5, 4] = 1
    assert pointing(values, [coco_box([4, 5, 2, 1])]).is_hit
    assert not pointing(values, [coco_box([5, 5, 2, 1])]).is_hit
