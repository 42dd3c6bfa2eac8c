"""A small run; `make fuzz` makes the full one."""

import pytest

from tests.fuzz.steps import Fuzz


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12])
def test_random_use_of_wraps_leaves_every_model_as_it_was(seed):
    fuzz = Fuzz(seed)
    fuzz.run(40)
    assert fuzz.interrupts >= 5
    assert fuzz.refusals < 30
