"""Benchmarks: ratios from interleaved, repeated runs. Run one with `python -m benchmarks.<name>`."""
