"""Shared by all tests: no network, few threads, and the optional folder of published data."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

if not torch.cuda.is_available():
    # Triton reads this when it is imported, which what follows does.
    # Tests that compile kernels ahead of time start a process of their own, without it.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests import leaks

# How long an example takes says more of the machine than of the code.
settings.register_profile("patient", deadline=None)
# Small faults (tests/mutants) are judged by the same examples each time, and one that fails is enough.
settings.register_profile(
    "mutants",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=25,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("mutants" if "MUTANT_UNDER_TEST" in os.environ else "patient")

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No test leaves anything on a model that another test made: hooks, attributes, settings, weights."""
    before = list(leaks.states())
    yield
    found = leaks.left_behind(before)
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder `shared/data` beside the repository; tests that ask for it skip without it."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional folder ../shared/data is absent")
    return folder
