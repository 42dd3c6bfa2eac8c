"""OPERA: the method, its decoding loop, and what it reads."""
