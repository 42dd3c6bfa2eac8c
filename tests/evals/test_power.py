"""400 simulated pairs of runs: known gains are found, and runs that do not differ raise no alarm beyond 5 %."""

import numpy as np
import pytest
from scipy.stats import binom

from lvlm_attn.evals.compare import compare
from tests.evals.runs import answers, pope_lines, run_of

PAIRS = 200
PICTURES, EACH = 50, 6


def simulate(seed, gain, discordant=0.1):
    """Two runs on one set of pictures; the second has its answers changed in `discordant` of all questions."""
    generator = np.random.default_rng(seed)
    first = answers(generator, PICTURES, EACH, right=0.7, spread=0.15)
    changed = generator.random(len(first)) < discordant
    to_right = generator.random(len(first)) < 0.5 + gain / discordant / 2
    second = np.where(changed, to_right, first)
    # Both runs get answers changed in the same way, so that without a gain neither is better.
    base = np.where(changed, ~to_right, first)
    lines = (pope_lines(item.tolist(), PICTURES) for item in (base, second))
    return compare([run_of(name, x) for name, x in zip("ab", lines)], resamples=200, seed=seed).runs["b"]


@pytest.fixture(scope="module")
def null():
    return [simulate(seed, 0.0) for seed in range(PAIRS)]


@pytest.fixture(scope="module")
def gained():
    return [simulate(1000 + seed, 0.05) for seed in range(PAIRS)]


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "f1", "precision", "yes_ratio", "mcc"])
def test_false_alarms_stay_at_five_percent(null, metric):
    alarms = sum(pair.metrics[metric].p < 0.05 for pair in null)
    # One-sided 99.9 % bound of a binomial count at a true rate of 5 %.
    assert alarms <= binom.ppf(0.999, PAIRS, 0.05)
    outside = sum(not pair.metrics[metric].low <= 0 <= pair.metrics[metric].high for pair in null)
    assert outside <= binom.ppf(0.999, PAIRS, 0.07)


@pytest.mark.slow
def test_gains_are_found_at_the_power_of_the_test(gained):
    found = sum(
        pair.metrics["accuracy"].p < 0.05 and pair.metrics["accuracy"].difference > 0 for pair in gained
    )
    # Power of an exact McNemar test: of 300 questions a tenth changes, three quarters of them for the better.
    n = PICTURES * EACH
    power = sum(
        binom.pmf(m, n, 0.1)
        * sum(binom.pmf(k, m, 0.75) for k in range(m + 1) if k > m / 2 and 2 * binom.sf(k - 1, m, 0.5) < 0.05)
        for m in range(n + 1)
    )
    assert 0.7 < power < 0.9
    assert abs(found - PAIRS * power) <= 3.3 * (PAIRS * power * (1 - power)) ** 0.5
    estimates = np.array([pair.metrics["accuracy"].difference for pair in gained])
    assert abs(estimates.mean() - 0.05) < 3.3 * estimates.std() / PAIRS**0.5


@pytest.mark.slow
def test_the_noise_floor_is_where_differences_begin_to_be_told(null, gained):
    floors = np.array([pair.metrics["accuracy"].noise for pair in [*null, *gained]])
    expected = 1.96 * (0.1 / (PICTURES * EACH)) ** 0.5
    assert abs(floors.mean() / expected - 1) < 0.15
