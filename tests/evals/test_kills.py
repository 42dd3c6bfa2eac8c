"""A few kills of real evaluations, one of them with two ranks; `make kills` runs them all."""

import pytest

from tests.evals import kills


@pytest.mark.slow
def test_killed_evaluations_end_in_the_same_files(untrained, tmp_path):
    assert kills.main(2, 1, seed=2, folder=tmp_path, model=untrained) == 2
