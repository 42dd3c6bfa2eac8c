import numpy as np
import pytest
from scipy import stats as reference

from lvlm_attn.errors import LvlmAttnError
from lvlm_attn.evals.core.stats import cluster_bootstrap, holm, mcnemar_exact, paired_outcomes, sum_by_cluster


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (10, 2), (75, 174), (110, 215)])
def test_mcnemar_is_the_two_sided_binomial_test(b, c):
    expected = reference.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, rel=1e-9)


def test_rows_of_a_cluster_are_added():
    totals = sum_by_cluster(["a", "b", "a"], [[1, 2], [3, 4], [5, 6]])
    assert totals.tolist() == [[6, 8], [3, 4]]
    with pytest.raises(LvlmAttnError, match="2 cluster names for 1 rows"):
        sum_by_cluster(["a", "b"], [[1]])


def test_interval_of_a_mean_matches_the_normal_one():
    values = np.random.default_rng(3).normal(5, 2, size=400)
    totals = np.stack([values, np.ones(400)], axis=1)
    interval = cluster_bootstrap(totals, lambda t: t[:, 0] / t[:, 1], resamples=4000, seed=1)
    half = 1.96 * values.std() / 20
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_rows_that_repeat_within_a_picture_do_not_narrow_the_interval():
    right = np.random.default_rng(0).integers(0, 2, size=100)
    once = sum_by_cluster(range(100), [[r, 1] for r in right])
    twice = sum_by_cluster([*range(100), *range(100)], [[r, 1] for r in [*right, *right]])
    share = lambda t: t[:, 0] / t[:, 1]  # noqa: E731
    assert cluster_bootstrap(once, share) == cluster_bootstrap(twice, share)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_paired_outcomes():
    found = paired_outcomes([True, True, False, False], [True, False, True, True])
    assert found == {"pairs": 4, "only_first_right": 1, "only_second_right": 2, "mcnemar_p": 1.0}
    with pytest.raises(LvlmAttnError, match="same samples"):
        paired_outcomes([True], [])
    with pytest.raises(LvlmAttnError, match="cannot be negative"):
        mcnemar_exact(-1, 2)
    with pytest.raises(LvlmAttnError, match="level"):
        cluster_bootstrap(np.ones((2, 1)), lambda t: t[:, 0], level=1.0)
