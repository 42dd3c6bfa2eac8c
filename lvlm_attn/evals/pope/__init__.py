"""POPE: polling-based object probing evaluation."""
