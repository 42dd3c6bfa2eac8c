"""Sweeps: parameters chosen on one part of the data, and reported once on another."""
