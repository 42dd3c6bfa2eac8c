"""Kernels run under Triton's interpreter where there is no GPU.

The switch has to be set before a kernel's module is imported, and holds for the whole process: tests that compile
kernels ahead of time start a process of their own, without it.
"""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def poisoned():
    """Memory that nothing was written to yet is full of NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)
