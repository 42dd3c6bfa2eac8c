"""Measurements that change nothing: sink dimensions, head divergence, diagnostics."""
