"""Published results as data: the exact command, what it should give, by whom, and how near is near.

One TOML file per method. What its sources do not state is left out.
"""
