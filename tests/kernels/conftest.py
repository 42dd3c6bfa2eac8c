"""What the tests of kernels share. They run under Triton's interpreter where there is no GPU (`tests/conftest.py`)."""

import pytest
import torch


@pytest.fixture
def poisoned():
    """Memory that nothing was written to yet is full of NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
