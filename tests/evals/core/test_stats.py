"""Intervals and tests, against scipy, enumeration and analytic values."""

import itertools

import numpy as np
import pytest
from scipy import stats as reference

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.stats import (
    cluster_bootstrap,
    exchange_p_values,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_outcomes,
    sum_by_cluster,
)


def share(totals):
    return totals[..., 0] / totals[..., 1]


def share_and_sum(totals):
    return np.stack([share(totals), totals[:, 0]], 1)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (10, 2), (75, 174), (110, 215)])
def test_mcnemar_is_the_two_sided_binomial_test(b, c):
    expected = reference.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)


def test_rows_of_a_cluster_are_added():
    totals = sum_by_cluster(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    assert totals.tolist() == [[6, 8], [3, 4]]
    with pytest.raises(LvlmAttnError, match="2 cluster names for 1 rows"):
        sum_by_cluster(["a", "b"], [[1]])
    with pytest.raises(LvlmAttnError, match="0 cluster names for 0 rows"):
        sum_by_cluster([], np.zeros((0, 2)))


def test_interval_of_a_mean_matches_the_normal_one():
    values = np.random.default_rng(3).normal(5, 2, size=400)
    totals = np.stack([values, np.ones(400)], axis=1)
    interval = cluster_bootstrap(totals, share, resamples=4000, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_the_level_is_the_share_of_draws_inside():
    """The ends are quantiles of the draws: for one column, of sums of as many pictures, drawn with replacement."""
    totals = np.random.default_rng(5).exponential(size=(60, 1))
    drawn = np.random.default_rng(6).choice(totals[:, 0], size=(40_000, 60)).sum(1)
    for level in (0.5, 0.8, 0.95):
        found = cluster_bootstrap(totals, lambda t: t[:, 0], resamples=40_000, seed=2, level=level)
        spread = drawn.std()
        assert found.low == pytest.approx(np.quantile(drawn, (1 - level) / 2), abs=0.07 * spread)
        assert found.high == pytest.approx(np.quantile(drawn, 1 - (1 - level) / 2), abs=0.07 * spread)
        assert (found.value, found.level) == (pytest.approx(totals.sum()), level)


def test_draws_go_by_their_number_and_seed():
    totals = np.random.default_rng(5).normal(size=(60, 1))
    first = lambda t: t[:, 0]  # noqa: E731
    assert cluster_bootstrap(totals, first) == cluster_bootstrap(totals, first, 2000, 0, 0.95)
    assert cluster_bootstrap(totals, first) != cluster_bootstrap(totals, first, 2001, 0, 0.95)
    assert cluster_bootstrap(totals, first) != cluster_bootstrap(totals, first, 2000, 1, 0.95)
    once = cluster_bootstrap(totals, first, resamples=1)
    assert once.low == once.high


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"level": 0.0}, {"level": -0.5}, {"resamples": 0}])
def test_levels_and_draws_that_mean_nothing_are_refused(wrong):
    with pytest.raises(LvlmAttnError, match=r"level is .* and resamples"):
        cluster_bootstrap(np.ones((2, 1)), lambda t: t[:, 0], **wrong)


def test_a_pair_of_runs_is_compared_on_the_same_pictures():
    generator = np.random.default_rng(7)
    first = np.stack([generator.integers(0, 5, (2, 80)), np.full((2, 80), 4)], -1).astype(float)
    second = np.stack([generator.integers(0, 5, (3, 80)), np.full((3, 80), 4)], -1).astype(float)
    found, drawn = paired_bootstrap(first, second, share_and_sum, resamples=500, seed=1)
    by_hand = [
        [np.mean([metric(run.sum(0)) for run in runs]) for metric in (share, lambda t: t[0])]
        for runs in (first, second)
    ]
    assert found == pytest.approx(np.subtract(*by_hand[::-1]))
    assert drawn.shape == (500, 2)
    assert np.abs(drawn.mean(0) - found).max() < 4 * (drawn.std(0) / 500**0.5).max()
    better = first + np.array([1.0, 0.0])
    one, draws = paired_bootstrap(first[:1], better[:1], lambda t: share(t)[:, None], resamples=50)
    assert (one, draws.ravel()) == (pytest.approx(0.25), pytest.approx(0.25))


def test_pictures_vary_a_paired_difference_as_the_central_limit_says():
    gain = np.random.default_rng(8).normal(0.1, 1, size=400)
    first = np.stack([np.random.default_rng(9).normal(0, 50, 400), np.ones(400)], -1)[None]
    second = first + np.stack([gain, np.zeros(400)], -1)
    _, drawn = paired_bootstrap(first, second, lambda t: share(t)[:, None], resamples=8000)
    assert drawn.std() == pytest.approx(gain.std() / 20, rel=0.05)
    assert drawn.mean() == pytest.approx(gain.mean(), abs=0.003)


def test_seeds_vary_a_difference_where_pictures_do_not():
    def runs(*values):
        return np.stack([np.stack([np.full(5, value), np.ones(5)], -1) for value in values])

    _, drawn = paired_bootstrap(runs(0.0, 1.0), runs(5.0), lambda t: share(t)[:, None], resamples=4000)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [4.0, 4.5, 5.0]
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    _, drawn = paired_bootstrap(runs(5.0), runs(0.0, 1.0), lambda t: share(t)[:, None], resamples=4000)
    assert np.unique(drawn).tolist() == [-5.0, -4.5, -4.0]


def test_paired_draws_are_two_thousand_from_seed_nought():
    first = np.random.default_rng(1).normal(size=(1, 20, 1))
    second = np.random.default_rng(2).normal(size=(1, 20, 1))
    arguments = first, second, lambda t: t
    (found, drawn), (_, same) = paired_bootstrap(*arguments), paired_bootstrap(*arguments, 2000, 0)
    assert (found.shape, drawn.shape) == ((1,), (2000, 1))
    assert (drawn == same).all()
    assert (drawn != paired_bootstrap(*arguments, seed=1)[1]).any()
    p = exchange_p_values(first[0], second[0], lambda t: t)
    assert p == exchange_p_values(first[0], second[0], lambda t: t, 2000, 0)
    assert p * 2001 == pytest.approx(round(float(p[0]) * 2001), abs=1e-9)
    assert p != exchange_p_values(first[0], second[0], lambda t: t, seed=1)


def exchanged(first, second, statistic):
    """The p values of all exchanges of answers about pictures, one after another."""
    found = np.abs(statistic(second.sum(0)[None]) - statistic(first.sum(0)[None]))[0]
    as_far = []
    for moved in itertools.product([False, True], repeat=len(first)):
        a = np.where(np.array(moved)[:, None], second, first).sum(0)[None]
        b = np.where(np.array(moved)[:, None], first, second).sum(0)[None]
        as_far.append(np.abs(statistic(b) - statistic(a))[0] >= found - 1e-9)
    return np.mean(as_far, 0)


@pytest.mark.parametrize("seed", range(3))
def test_p_values_of_exchanges_equal_enumeration(seed):
    generator = np.random.default_rng(seed)
    first, second = (
        np.stack([generator.integers(0, 4, 7), generator.integers(4, 7, 7)], 1) * 0.1 for _ in "ab"
    )
    second = second + np.array([0.1 * seed, 0])
    found = exchange_p_values(first, second, share_and_sum, draws=40_000, seed=seed)
    assert found == pytest.approx(exchanged(first, second, share_and_sum), abs=0.012)


def test_p_values_of_equal_runs_are_one_and_of_clear_ones_the_least():
    run = np.random.default_rng(4).random((30, 2)) + 0.1
    above = run + np.array([5, 0])
    assert exchange_p_values(run, run, share_and_sum, draws=99).tolist() == [1.0, 1.0]
    assert exchange_p_values(run, above, share_and_sum, draws=99).tolist() == [0.01, 0.01]
    assert exchange_p_values(above, run, share_and_sum, draws=99).tolist() == [0.01, 0.01]


def test_what_is_not_defined_is_never_significant():
    first, second = np.zeros((30, 2)), np.ones((30, 2))
    with np.errstate(invalid="ignore"):
        assert exchange_p_values(first, second, lambda t: share(t)[:, None], draws=99).tolist() == [1.0]


def test_rows_that_repeat_within_a_picture_do_not_narrow_the_interval():
    right = np.random.default_rng(0).integers(0, 2, size=100)
    once = sum_by_cluster(range(100), [[r, 1] for r in right])
    twice = sum_by_cluster([*range(100), *range(100)], [[r, 1] for r in [*right, *right]])
    assert cluster_bootstrap(once, share) == cluster_bootstrap(twice, share)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(5))
def test_holm_rejects_as_its_steps_do(seed):
    """An adjusted value is at most a level exactly where Holm's step-down procedure rejects at that level."""
    p_values = np.random.default_rng(seed).beta(0.3, 3, size=7).tolist()
    adjusted = holm(p_values)
    for level in np.linspace(0.001, 0.999, 200):
        rejected = set()
        for rank, i in enumerate(np.argsort(p_values)):
            if p_values[i] > level / (7 - rank):
                break
            rejected.add(i)
        assert {i for i in range(7) if adjusted[i] <= level} == rejected


def test_holm_of_none_and_of_one():
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.0, 0.0]) == [0.0, 0.0]


def test_paired_outcomes():
    first, second = [True, True, False, False, True, False], [True, False, True, True, True, False]
    found = paired_outcomes(first, second)
    assert found == {"pairs": 6, "only_first_right": 1, "only_second_right": 2, "mcnemar_p": 1.0}
    many = paired_outcomes([True] * 8 + [False] * 3, [False] * 7 + [True] * 3 + [False])
    assert many == {
        "pairs": 11, "only_first_right": 7, "only_second_right": 2, "mcnemar_p": pytest.approx(46 / 256),
    }  # fmt: skip
    with pytest.raises(LvlmAttnError, match="same samples"):
        paired_outcomes([True], [])
    for negative in ((-1, 2), (2, -1)):
        with pytest.raises(LvlmAttnError, match="cannot be negative"):
            mcnemar_exact(*negative)
