"""Kernels run under Triton's interpreter where there is no GPU.

The switch has to be set before a kernel's module is imported, and holds for the whole process: tests that compile
kernels ahead of time start a process of their own, without it.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
