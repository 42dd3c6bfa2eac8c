"""A few kills of real evaluations, one of them with two ranks, before a release; `make kills` runs them all.

On every day `evals/core/test_killed.py` kills runs of a model that answers at once.
"""

import pytest

from tests.evals import kills
from tests.fuzzing import IS_FULL


@pytest.mark.slow
@pytest.mark.skipif(not IS_FULL, reason="make test-all and make kills run it")
def test_killed_evaluations_end_in_the_same_files(untrained, tmp_path):
    assert kills.main(2, 1, seed=2, folder=tmp_path, model=untrained) == 2
