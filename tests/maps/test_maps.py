"""Contrast, upsampling, regions and crops against definitions written out here."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.maps.contrast import joined
from lvlm_attn.maps.crops import (
    blacken,
    kept_share,
    refine,
    relevance_mask,
    smoothed,
    zoom_factor,
)
from lvlm_attn.maps.geometry import Frame
from lvlm_attn.maps.maps import contrast, entropy, upsample
from lvlm_attn.maps.reading import scaled_layers
from lvlm_attn.maps.regions import best_regions, bounding_box, threshold
from tests.fuzzing import sized

RNG = np.random.default_rng(0)


def rows(*shape):
    return RNG.dirichlet(np.ones(shape[-1]), shape[:-1])


def test_contrast_minimises_its_objective():
    """No step away from the closed form makes the regularised square smaller."""
    asked, told = rows(2, 50)
    for lam in (1e-3, 0.05, 1.0):

        def loss(x, lam=lam):
            return ((x * told - asked) ** 2).sum() + lam * (x**2 * told).sum()

        best = contrast(asked, told, lam)
        for size in (1e-3, 0.1, 3.0):
            assert all(loss(best + size * RNG.standard_normal(50)) > loss(best) for _ in range(20))


def test_contrast_of_equal_prompts_is_one():
    asked = rows(6, 40)
    assert np.array_equal(contrast(asked, asked, lam=0.0), np.ones_like(asked))
    damped = contrast(asked, asked, lam=0.01)
    assert (damped < 1).all()
    order = asked.ravel().argsort()
    assert (np.diff(damped.ravel()[order]) > 0).all()


def test_equal_prompts_keep_the_whole_image():
    block = rows(1, 3, 12).reshape(1, 3, 3, 4)
    (ratio,) = joined(([block], [block]), "first", 0.0, None)
    assert np.allclose(ratio, ratio[0, 0], rtol=1e-15)
    values = upsample(np.full_like(ratio, 3.0), Frame(0, 0, 40, 30), (40, 30))
    assert threshold([values], 0.2)[0].all()


def test_scale_of_attention_does_not_matter_without_absolute_regularisation():
    asked, told = rows(2, 60)
    for options in ({"lam": 0.0}, {"lam_rel": 0.5}):
        plain, scaled = contrast(asked, told, **options), contrast(7 * asked, 0.3 * told, **options)
        assert np.allclose(scaled / plain, scaled[0] / plain[0], rtol=1e-12)
    plain, scaled = contrast(asked, told, 0.05), contrast(asked, 0.3 * told, 0.05)
    assert not np.allclose(scaled / plain, scaled[0] / plain[0], rtol=0.01)


def test_contrast_of_other_shapes_is_refused():
    with pytest.raises(LvlmAttnError, match="cannot be contrasted"):
        contrast(rows(2, 4), rows(2, 5))


@pytest.mark.parametrize("mode", ["first", "last", "all"])
def test_modes_follow_their_definition(mode):
    asked, told = RNG.random((4, 2, 3, 5)), RNG.random((3, 2, 3, 5))
    ratio = lambda t, s: (asked[t] / (told[s] + 1e-8)).sum(0)  # noqa: E731
    want = {
        "first": ratio(0, 0),
        "last": ratio(3, 2),
        "all": ratio(0, 0) + 2 * ratio(1, 1) + 3 * ratio(2, 2),
    }[mode]
    (got,) = joined(([asked], [told]), mode, 1e-8, None)
    assert np.allclose(got, want, rtol=1e-12)


def test_mode_all_with_one_step_is_mode_first():
    pair = ([RNG.random((1, 2, 3, 5))], [RNG.random((1, 2, 3, 5))])
    assert np.array_equal(joined(pair, "all", 0, None)[0], joined(pair, "first", 0, None)[0])


def slow_upsample(grid, frame, size):
    out = np.zeros((size[1], size[0]))
    for y in range(size[1]):
        for x in range(size[0]):
            if not (frame.left <= x + 0.5 < frame.right and frame.top <= y + 0.5 < frame.bottom):
                continue
            v = (y + 0.5 - frame.top) / (frame.bottom - frame.top) * grid.shape[0] - 0.5
            u = (x + 0.5 - frame.left) / (frame.right - frame.left) * grid.shape[1] - 0.5
            v, u = min(max(v, 0), grid.shape[0] - 1), min(max(u, 0), grid.shape[1] - 1)
            for r in range(grid.shape[0]):
                for c in range(grid.shape[1]):
                    out[y, x] += grid[r, c] * max(0, 1 - abs(v - r)) * max(0, 1 - abs(u - c))
    return out


@pytest.mark.parametrize("frame", [Frame(0, 0, 13, 9), Frame(2, -3, 11, 12), Frame(-1.5, 0.25, 14, 7)])
def test_upsampling_is_bilinear(frame):
    for shape in ((3, 4), (1, 5), (2, 1)):
        grid = RNG.random(shape)
        assert np.allclose(upsample(grid, frame, (13, 9)), slow_upsample(grid, frame, (13, 9)), atol=1e-12)


def test_upsampling_agrees_with_pillow():
    grid = RNG.random((24, 24)).astype(np.float32)
    want = np.asarray(Image.fromarray(grid, "F").resize((200, 130), Image.Resampling.BILINEAR))
    assert np.abs(upsample(grid, Frame(0, 0, 200, 130), (200, 130)) - want).max() < 1e-5


def test_upsample_after_the_sum_is_the_sum_of_the_upsampled():
    parts = RNG.random((30, 6, 7))
    frame = Frame(0, 0, 50, 40)
    total = sum(upsample(part, frame, (50, 40)) for part in parts)
    assert np.abs(upsample(parts.sum(0), frame, (50, 40)) - total).max() < 1e-6


def test_masks_are_nested_and_keep_their_share():
    maps = [RNG.random((20, 30)), RNG.random((11, 7))]
    pixels = sum(item.size for item in maps)
    shares = (0.05, 0.2, 0.37, 0.8, 1.0)
    found = [threshold(maps, p) for p in shares]
    for p, masks in zip(shares, found):
        kept = sum(int(mask.sum()) for mask in masks)
        assert abs(kept - p * pixels) <= 1
    for small, large in itertools.pairwise(found):
        assert all((~a | b).all() for a, b in zip(small, large))


def test_p_of_one_keeps_everything():
    """The mask is full, the box is the image and the image is the very same."""
    values = RNG.random((12, 15))
    picture = Image.fromarray(RNG.integers(0, 255, (12, 15, 3), dtype=np.uint8))
    is_seen = np.zeros((12, 15), dtype=bool)
    is_seen[:, 3:12] = True
    masks = best_regions(threshold([values], 1.0, [is_seen]), [values], 2)
    assert masks[0].all()
    refined, box = refine(picture, masks[0], 8.0, pad_to_square=True)
    assert refined is picture
    assert box == (0, 0, 15, 12)


def test_unseen_pixels_do_not_count():
    values = np.zeros((10, 20))
    values[:, 5:15] = 1 + RNG.random((10, 10))
    is_seen = values > 0
    (mask,) = threshold([values], 0.5, [is_seen])
    assert mask.sum() == 50
    assert not (mask & ~is_seen).any()


def test_regions_are_joined_by_edges_and_ranked_by_their_sum():
    values = np.array(
        [
            [9.0, 0.0, 1.0, 1.0],
            [0.0, 3.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 0.0],
            [2.0, 2.0, 2.0, 2.0],
        ]
    )
    diagonal = np.eye(4, dtype=bool)
    assert best_regions([diagonal], [np.ones((4, 4))], 3)[0].sum() == 3  # four regions, not one
    mask = values > 0
    (one,) = best_regions([mask], [values], 1)
    assert one.tolist() == (values == 9).tolist()
    (two,) = best_regions([mask], [values], 2)
    assert two[3].all()
    assert two.sum() == 5
    (all_of_them,) = best_regions([mask], [values], 9)
    assert np.array_equal(all_of_them, mask)


@sized(40)
@given(st.integers(1, 5), st.integers(0, 1000), st.floats(0.05, 0.9))
def test_no_more_regions_than_asked_for(keep, seed, p):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    maps = [rng.random((9, 12)), rng.random((5, 4))]
    raw = threshold(maps, p)
    kept = best_regions(raw, maps, keep)
    assert sum(ndimage.label(mask)[1] for mask in kept) <= keep
    assert all((~mask | whole).all() for mask, whole in zip(kept, raw))
    released = best_regions(raw, maps, keep, "released", p)
    count = sum(ndimage.label(mask)[1] for mask in raw)
    assert sum(ndimage.label(mask)[1] for mask in released) == min(count, max(keep, int(count * p)))


def test_an_image_without_a_region_stays_whole():
    maps = [np.full((6, 6), 0.1), np.full((6, 6), 5.0)]
    maps[1][:3] = 4.0
    masks = best_regions(threshold(maps, 0.25), maps, 1)
    assert not masks[0].any()
    picture = Image.new("RGB", (6, 6), (9, 9, 9))
    assert refine(picture, masks[0], 8.0) == (picture, (0, 0, 6, 6))


def test_refining_blackens_crops_and_enlarges():
    pixels = RNG.integers(1, 255, (40, 60, 3), dtype=np.uint8)
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:20, 10:14] = True
    mask[18:22, 30:40] = True
    refined, box = refine(Image.fromarray(pixels), mask, 1.0)
    assert box == bounding_box(mask) == (10, 10, 40, 22)
    assert np.array_equal(np.asarray(refined), (pixels * mask[..., None])[10:22, 10:40])
    large, _ = refine(Image.fromarray(pixels), mask, 8.0)
    assert large.size == (100, 40)  # covers 60 x 40
    square, _ = refine(Image.fromarray(pixels), mask, 8.0, pad_to_square=True)
    assert square.size == (100, 100)
    assert np.array_equal(np.asarray(square)[30:70], np.asarray(large))
    assert not np.asarray(square)[:30].any()


@sized(60)
@given(*[st.integers(1, 1000)] * 4, st.floats(1, 20))
def test_zoom_is_bounded(a, b, width, height, most):
    crop = (min(a, width), min(b, height))
    factor = zoom_factor(crop, (width, height), most)
    assert 1 <= factor <= max(most, 1)
    assert factor == 1 or factor**2 * crop[0] * crop[1] <= 4 * width * height * (1 + 1e-9)


def test_entropy():
    assert math.isclose(entropy(np.ones((4, 6))), math.log(24))
    assert entropy(np.eye(1, 9)[0]) == 0
    assert entropy(np.zeros(3)) == 0


def test_kept_share_falls_with_similarity():
    values = np.linspace(-1, 1, 41)
    shares = np.array([kept_share(float(value)) for value in values])
    assert (np.diff(shares) <= 0).all()
    inside = shares[values >= 0]
    assert ((inside >= 0.5) & (inside < 1)).all()
    assert [round(kept_share(value), 4) for value in (0.2, 0.42, 0.6, 1.0)] == [0.9, 0.79, 0.7, 0.5]
    assert kept_share(-0.5) == kept_share(0.0) == 1 - 1e-5


@sized(40)
@given(st.integers(2, 400), st.floats(0.5, 0.99999), st.integers(0, 99))
def test_mask_keeps_one_more_than_the_rank(count, share, seed):
    values = np.random.default_rng(seed).permutation(count).astype(float).reshape(1, -1)
    mask = relevance_mask(values, share)
    assert mask.sum() == min(int(count * share) + 1, count)
    assert values[mask].min() > (values[~mask].max() if (~mask).any() else -1)


def test_flat_relevance_keeps_the_image():
    picture = Image.new("RGB", (12, 10), (7, 8, 9))
    for flat in (np.zeros((3, 4)), np.full((3, 4), 0.7)):
        mask = relevance_mask(np.zeros((10, 12)), 0.6)
        assert mask.all()
        assert blacken(picture, mask) is picture
        assert smoothed(flat, (12, 10)).shape == (10, 12)
        assert relevance_mask(np.where(np.eye(10, 12) > 0, np.nan, 1.0), 0.5).all()


def test_unknown_pixels_are_kept_and_not_counted():
    values = np.arange(20.0).reshape(4, 5)
    values[:, 0] = np.nan
    mask = relevance_mask(values, 0.5)
    assert mask[:, 0].all()
    assert mask[:, 1:].sum() == 9


def test_smoothing_attenuates_the_border():
    """Zeros stand around the grid before it is enlarged, so its outer cells lose weight."""
    even = np.ones((6, 6))
    even[3, 3] = 0
    big = smoothed(even, (120, 120))
    assert big.shape == (120, 120)
    assert big.min() == 0
    assert big.max() == 1
    assert big[0, 0] < big[30, 30]
    spot = np.zeros((8, 8))
    spot[2, 5] = 1
    y, x = np.unravel_index(smoothed(spot, (160, 80)).argmax(), (80, 160))
    assert 100 <= x < 120
    assert 20 <= y < 30


def test_the_blur_repeats_the_border_as_the_released_code_does():
    """By hand: a Gaussian of 0.02 of the longer side, in rows and columns, with border values going on outside."""
    values = np.random.default_rng(0).random((50, 100))
    radius = int(4 * 2.0 + 0.5)
    bell = np.exp(-0.5 * (np.arange(-radius, radius + 1) / 2.0) ** 2)
    bell /= bell.sum()
    want = (values - values.min()) / (values.max() - values.min())
    for _ in range(2):
        padded = np.pad(want, ((0, 0), (radius, radius)), mode="edge")
        want = np.stack([np.convolve(row, bell, mode="valid") for row in padded]).T
    want = (want - want.min()) / (want.max() - want.min())
    assert np.abs(smoothed(values, (100, 50)) - want).max() < 1e-12


def test_layers_are_scaled():
    assert scaled_layers(20, 25, 32) == tuple(range(20, 26))
    assert scaled_layers(20, 25, 64) == tuple(range(40, 52))
    for count in range(1, 40):
        found = scaled_layers(20, 25, count)
        assert found
        assert max(found) < count


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(LvlmAttnError, match="does not fit"):
        blacken(Image.new("RGB", (4, 4)), np.ones((3, 4), dtype=bool))
