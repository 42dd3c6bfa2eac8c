"""Triton kernels for edited attention."""
