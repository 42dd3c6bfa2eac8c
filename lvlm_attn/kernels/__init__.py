"""Attention with structured edits: one description of a call, its definition, and the paths that compute it."""
