"""Benchmarks of closed questions, answered yes or no or by a letter: AMBER's discriminative part, MME, MMVP and more.

One file each: where the questions are read from, which of them belong together, and how counts become metrics.
"""
