"""Views of a prompt that are read beside it: one batch, one cache, one chosen token for all."""
