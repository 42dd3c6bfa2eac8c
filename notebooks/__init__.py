"""Lessons as Jupyter notebooks, and the script that runs them anew (`python -m notebooks.build`)."""
