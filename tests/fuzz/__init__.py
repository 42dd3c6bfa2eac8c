"""Random use of wraps: after every step the models are as they were, or as their open wraps make them.

`python -m tests.fuzz --steps 2000 --seeds 1 2 3` is the full run (`make fuzz`); `test_fuzz` runs a small one.
"""
